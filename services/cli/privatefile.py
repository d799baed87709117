"""Files with what customers said: readable by nobody else, and there only when they are whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from services.cli.failures import CommandError


@contextlib.contextmanager
def written(path: Path) -> Iterator[TextIO]:
    """Give a file to write to, which takes its name at the end: a half written one is none.

    Raises:
        CommandError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
