"""What this machine lacks: `python3 -m infra.local.doctor` says in one line what to install.

Standard library only, and runs before anything is set up.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from infra.triton.install import InstallationError, find_libpython

OLDEST = (3, 11)


def _has_libpython() -> bool:
    try:
        find_libpython()
    except InstallationError:
        return False
    return True


def _has_programs(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name) for name in names)


# A fact that has to hold, what it is for, and the Debian package that brings it.
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
CHECKS: list[tuple[Callable[[], bool], str, str]] = [
    (lambda: find_spec("ensurepip") is not None, "virtual environments", f"python{_VERSION}-venv"),
    (_has_libpython, "Triton's Python backend", f"libpython{_VERSION}"),
    (_has_programs("setpriv"), "starting parts that end with their supervisor", "util-linux"),
]


def missing() -> dict[str, str]:
    """Debian packages to install, each with what it is for."""
    return {package: purpose for holds, purpose, package in CHECKS if not holds()}


def main() -> None:
    """Exit with a line that says what to do, or silently when nothing is missing."""
    parser = argparse.ArgumentParser(prog="python3 -m infra.local.doctor", description=__doc__)
    parser.add_argument("--packages", action="store_true", help="only print the packages to install")
    options = parser.parse_args()
    if sys.version_info < OLDEST:
        sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {_VERSION}: set PYTHON=/path/to/python3.11")
    packages = missing()
    if options.packages:
        sys.stdout.write(" ".join(packages))
    elif packages:
        purposes = ", ".join(f"{package} ({purpose})" for package, purpose in packages.items())
        sys.exit(f"This machine lacks {purposes}. Install with:\n    sudo apt-get install -y {' '.join(packages)}")
    elif not sys.platform.startswith("linux") or not Path("/proc/self/stat").exists():
        sys.exit("The parts run on Linux only, with /proc mounted")


if __name__ == "__main__":
    main()
