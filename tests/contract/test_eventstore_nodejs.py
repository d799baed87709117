"""The official Node.js client drives the same server; its tests are in test_eventstore_nodejs.mjs.

The client comes from npm, at one exact version, into `build/`. Without Node.js or npm the tests are skipped, unless
RECORRIDO_REQUIRE_NODE is set, as continuous integration has it: then they fail.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support import eventstore

CLIENT = "@kurrent/kurrentdb-client@1.3.1"
TESTS = Path(__file__).with_suffix(".mjs")

pytestmark = pytest.mark.timeout(240)


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("RECORRIDO_REQUIRE_NODE"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def modules() -> Path:
    """A folder with the client installed."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        _give_up("needs Node.js and npm")
    folder = eventstore.REPOSITORY / "build" / "nodejs" / CLIENT.rpartition("@")[2]
    if not (folder / "installed").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        install = ["npm", "install", "--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", CLIENT]
        result = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
        if result.returncode != 0:
            _give_up(f"npm cannot install {CLIENT}: {result.stderr.strip()[-300:]}")
        (folder / "installed").touch()
    return folder


def test_the_official_nodejs_client(modules: Path, tmp_path: Path) -> None:
    with eventstore.connection_string(tmp_path / "data") as uri:
        result = subprocess.run(
            ["node", "--test", "--test-reporter=spec", str(TESTS)],
            env={
                **os.environ,
                "KURRENTDB_URI": uri,
                "KURRENTDB_MODULES": str(modules),
                "KURRENTDB_IS_REAL": str(int(eventstore.is_real_server())),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
