"""docs/ingest.md: its program runs as it stands, and prints what the page says."""

import asyncio
import os
import re
import sys
from pathlib import Path

from infra.local.parts import ROOT
from tests.support.front_door import front_door

PAGE = (ROOT / "docs/ingest.md").read_text()


async def test_the_program_on_the_page_prints_what_the_page_says(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    pieces = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(pieces) == len(printed) > 0
    program.write_text("\n".join(pieces))
    async with front_door(tmp_path / "data") as door:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program)),
            env={**os.environ, "INGEST": door.cluster.address("ingest"), "PYTHONPATH": str(ROOT / "proto/gen")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert err.decode() == ""
    assert out.decode() == "".join(printed)
