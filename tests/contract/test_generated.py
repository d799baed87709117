"""The contracts and what is made of them: generated code is fresh, style is kept, nothing published is broken."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).with_name("buf")
BASELINE = ROOT / "proto/baseline.binpb"


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy of the contracts, to break."""
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "proto/recorrido", tmp_path / "proto/recorrido")
    return tmp_path


def test_the_generated_code_is_fresh() -> None:
    done = run(sys.executable, "proto/generate.py", "--check")
    assert done.returncode == 0, said(done)


def test_the_contracts_keep_the_style() -> None:
    done = run(BUF, "lint")
    assert done.returncode == 0, said(done)


def test_nothing_published_is_broken() -> None:
    done = run(BUF, "breaking", "--against", BASELINE)
    assert done.returncode == 0, said(done)


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("actions/v1/events.proto", "string signal_id = 3;", "string signal_id = 33;"),
        ("actions/v1/events.proto", "string signal_id = 3;", "string signal_ref = 3;"),
        ("actions/v1/events.proto", "string signal_id = 3;", ""),
        ("ingest/v1/interaction.proto", "double value = 2;", "string value = 2;"),
        ("ingest/v1/interaction.proto", "CHANNEL_STORE = 1;", "CHANNEL_SHOP = 1;"),
        ("actions/v1/actions_service.proto", "returns (OpenActionResponse)", "returns (AcceptActionResponse)"),
    ],
)
def test_a_broken_contract_would_be_noticed(workspace: Path, file: str, before: str, after: str) -> None:
    contract = workspace / "proto/recorrido" / file
    text = contract.read_text()
    assert before in text
    contract.write_text(text.replace(before, after, 1))
    done = run(BUF, "breaking", "--against", BASELINE, cwd=workspace)
    assert done.returncode == 100, said(done)


def test_a_new_field_breaks_nothing(workspace: Path) -> None:
    contract = workspace / "proto/recorrido/actions/v1/events.proto"
    text = contract.read_text()
    contract.write_text(text.replace("message ActionOpened {", "message ActionOpened {\n  string brand_new = 900;", 1))
    done = run(BUF, "breaking", "--against", BASELINE, cwd=workspace)
    assert done.returncode == 0, said(done)


def test_stale_generated_code_would_be_noticed(workspace: Path) -> None:
    shutil.copy(ROOT / "proto/generate.py", workspace / "proto")
    shutil.copytree(ROOT / "proto/gen", workspace / "proto/gen", ignore=shutil.ignore_patterns("__pycache__"))
    contract = workspace / "proto/recorrido/actions/v1/events.proto"
    text = contract.read_text()
    contract.write_text(text.replace("message ActionOpened {", "message ActionOpened {\n  string brand_new = 900;", 1))
    done = run(sys.executable, "proto/generate.py", "--check", cwd=workspace)
    assert done.returncode == 1
    assert "recorrido/actions/v1/events.py" in done.stderr
    assert "recorrido/journey/v1/events.py" not in done.stderr
