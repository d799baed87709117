"""A data directory: made once, completely or not at all, and checked for what a killed server left behind."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from infra.postgres.account import Account
from infra.postgres.programs import Programs

ROLE = "recorrido"
DATABASE = "recorrido"
LEAVE_WITHIN_S = 10.0

# The role is no superuser on purpose: with `trust` on loopback, every account of the machine may be it.
_ROLE_AND_DATABASE = f"""\
CREATE ROLE {ROLE} LOGIN CREATEDB
CREATE DATABASE {DATABASE} OWNER {ROLE}
"""
_HBA = f"""\
# Loopback only, one role that is no superuser. Superusers: `postgres --single`.
host all {ROLE} 127.0.0.1/32 trust
"""

# A log is removed once a checkpoint lies behind it; the one in use is left by a switch to the next.
_SCRUB = "VACUUM FULL\n" + "SELECT pg_switch_wal()\nCHECKPOINT\n" * 2

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",  # the folder is on a solid-state disk
    "jit": "off",  # our queries are short; compiling them costs more than it saves
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "",  # the supervisor says who and when
    "log_checkpoints": "off",
}


class ClusterError(Exception):
    """The data directory cannot be made or used; the text says why."""


def initialise(data: Path, programs: Programs, account: Account) -> None:
    """Make the cluster, the role and the database, unless they are there.

    Everything is made beside `data` and renamed into place, so that a kill half-way leaves nothing half made.
    """
    if (data / "PG_VERSION").exists():
        return
    partial = data.with_name(f"{data.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    os.chown(partial, account.uid, account.gid)
    initdb = [programs.initdb, "-D", partial, "--username=postgres", "--auth=reject", "--encoding=UTF8"]
    _run([*account.prefix, *map(str, initdb), "--locale=C.UTF-8", "--data-checksums", "--no-instructions"])
    single = [programs.postgres, "--single", "-D", partial, "-c", "exit_on_error=true", "postgres"]
    _run([*account.prefix, *map(str, single)], _ROLE_AND_DATABASE)
    (partial / "pg_hba.conf").write_text(_HBA)
    if data.exists():
        data.rmdir()  # empty, or it would not be ours to replace
    partial.rename(data)


def settle(data: Path) -> None:
    """Wait until no process of an earlier server uses `data`, and remove a pid file that it left.

    The pid in that file can meanwhile be anybody's, and the server would then refuse to start.

    Raises:
        ClusterError: a server is running on `data`, or its last processes do not leave.
    """
    pid_file = data / "postmaster.pid"
    postmaster = int(pid_file.read_text().split("\n", 1)[0] or 0) if pid_file.exists() else 0
    deadline = time.monotonic() + LEAVE_WITHIN_S
    while users := _processes_in(data):
        if postmaster in users:
            raise ClusterError(f"a PostgreSQL is already running on {data}, pid {postmaster}")
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {sorted(users)} of an earlier PostgreSQL still use {data}")
        time.sleep(0.02)
    pid_file.unlink(missing_ok=True)


def scrub(data: Path, programs: Programs, account: Account) -> None:
    """Take what was deleted off the disk: rewrite every table, and leave no write-ahead log that still holds it.

    Raises:
        ClusterError: it did not succeed; nothing is lost.
    """
    single = [programs.postgres, "--single", "-D", data, "-c", "exit_on_error=true", "-c", "wal_recycle=off", DATABASE]
    _run([*account.prefix, *map(str, single)], _SCRUB)


def server(data: Path, port: int, programs: Programs, account: Account) -> list[str]:
    """The command that runs the server in the foreground."""
    settings = [word for name, value in {**SETTINGS, "port": str(port)}.items() for word in ("-c", f"{name}={value}")]
    return [*account.prefix, str(programs.postgres), "-D", str(data), *settings]


def _processes_in(data: Path) -> set[int]:
    """Pids of the processes that work in `data`, as each process of a PostgreSQL server does."""
    where = data.resolve()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "cwd").readlink() == where:
                found.add(int(entry.name))
        except OSError:  # gone meanwhile, or not ours to look at
            continue
    return found


def _run(command: list[str], stdin: str = "") -> None:
    done = subprocess.run(
        command,
        check=False,
        input=stdin,
        text=True,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != 0:
        raise ClusterError(f"{Path(command[-1]).name} failed with exit code {done.returncode}:\n{done.stdout}")
