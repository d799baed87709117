"""What this machine lacks: `python3 -m infra.local.doctor` says it in one line, or installs it (`--install`, as root).

Standard library only, and runs before anything is set up.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
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


def install(packages: Iterable[str]) -> None:
    """Install Debian packages, without asking; the process ends where that fails."""
    sys.stderr.write(f"Installing {' '.join(packages)}\n")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", "--quiet=2", *command], env=environment, check=False)  # noqa: S607
        if done.returncode:
            sys.exit(f"apt-get {command[0]} failed with {done.returncode}")


def main() -> None:
    """Exit with a line that says what to do, or silently when nothing is missing."""
    parser = argparse.ArgumentParser(prog="python3 -m infra.local.doctor", description=__doc__)
    parser.add_argument("--install", action="store_true", help="as root on Debian, install what is missing")
    options = parser.parse_args()
    if sys.version_info < OLDEST:
        sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {_VERSION}: set PYTHON=/path/to/python3.11")
    packages = missing()
    if packages and options.install and os.geteuid() == 0 and shutil.which("apt-get"):
        install(packages)
        packages = missing()
    if packages:
        purposes = ", ".join(f"{package} ({purpose})" for package, purpose in packages.items())
        sys.exit(f"This machine lacks {purposes}. Install with:\n    sudo apt-get install -y {' '.join(packages)}")
    elif not sys.platform.startswith("linux") or not Path("/proc/self/stat").exists():
        sys.exit("The parts run on Linux only, with /proc mounted")


if __name__ == "__main__":
    main()
