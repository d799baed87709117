"""Who runs the server: PostgreSQL refuses to run as root, so root hands it to another account."""

import os
import pwd
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

DEFAULT_ACCOUNT = "nobody"


class AccountError(Exception):
    """The server cannot run as, or its files cannot be reached by, the account it has to run as."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account of the machine, and the words that make a command run as it (none: we are it already)."""

    name: str
    uid: int
    gid: int
    prefix: tuple[str, ...] = ()


def choose(data: Path) -> Account:
    """The account to run as: ourselves, or when we are root the owner of the data, else `nobody`.

    Raises:
        AccountError: the data directory belongs to somebody else.
    """
    me = os.geteuid()
    owner = data.stat().st_uid if data.exists() else None
    if me != 0:
        if owner not in (None, me):
            raise AccountError(f"{data} belongs to {_name(owner)}: run as that account or remove the directory")
        return Account(_name(me), me, os.getegid())
    entry = pwd.getpwuid(owner) if owner else pwd.getpwnam(DEFAULT_ACCOUNT)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, _switch_to(entry))


def able_to_reach(account: Account, *, enter: list[Path], read: list[Path]) -> Account:
    """The same account, made able to enter the folders and read the files, where that takes help.

    A repository below a private home directory (`/root`, say) is closed to every other account, however open
    its own files are. Then, and only then, the server keeps one capability of root, to pass file permissions.
    The server's one login role is no superuser, so no client can turn that into reading files.

    Raises:
        AccountError: they cannot be reached, with or without that capability.
    """
    if not account.prefix:
        return account
    tests = [f"test -x {quote(str(path))}" for path in enter] + [f"test -r {quote(str(path))}" for path in read]
    # Without that bit, access(2), which initdb asks about its programs, would not count the capability.
    capability = ("--securebits=+no_setuid_fixup", "--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override")
    for candidate in (account, replace(account, prefix=(*account.prefix, *capability))):
        command = [*candidate.prefix, "sh", "-c", " && ".join(tests)]
        if subprocess.run(command, check=False, capture_output=True, cwd="/").returncode == 0:
            return candidate
    raise AccountError(
        f"PostgreSQL must not run as root, and {account.name} cannot reach "
        f"{' or '.join(map(str, enter + read))}: move the repository and RECORRIDO_DATA out of private "
        "directories, or run as another account"
    )


def _switch_to(entry: pwd.struct_passwd) -> tuple[str, ...]:
    # `keep`: changing the account would otherwise drop the signal that ends us with our supervisor.
    ids = (f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups")
    return ("setpriv", "--pdeathsig=keep", "--no-new-privs", *ids)


def _name(uid: int | None) -> str:
    try:
        return pwd.getpwuid(uid or 0).pw_name
    except KeyError:
        return f"uid {uid}"
