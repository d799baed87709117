"""What the parts write: line by line to the terminal, with the part's name, and to a file of limited size."""

import os
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

FILE_CAP_BYTES = 8 * 1024 * 1024
LINE_CAP_BYTES = 64 * 1024
REMEMBERED_LINES = 20

#: A warning or worse, as Triton (W1129 …), NATS ([WRN]) and PostgreSQL (WARNING:) write it, and a Python traceback;
#: not what PostgreSQL answers to those who ask whether it is up.
_ALARM = re.compile(
    r"^(?!.*the database system is (?:starting up|not yet accepting connections))"
    r"(?:[WEF]\d{4} |.*\[(WRN|ERR|FTL)\]|.*\b(WARNING|ERROR|FATAL|PANIC|Traceback)\b)"
)

_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92)
_RED = 31


def wants_colour(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether to colour: as NO_COLOR or FORCE_COLOR say, else only on a terminal."""
    if environment.get("NO_COLOR"):
        return False
    return bool(environment.get("FORCE_COLOR")) or stream.isatty()


class Console:
    """Prints lines with a prefix, each part in its own colour.

    Lines of parts are left out where `quiet`; those of the supervisor itself never are. What a part says several times
    one after the other is printed once, and counted.
    """

    def __init__(self, stream: TextIO | None = None, *, width: int = 10, quiet: bool = False) -> None:
        self._stream = stream
        self._colour = wants_colour(stream or sys.stdout, os.environ)
        self._width = width
        self._quiet = quiet
        #: Called once nobody reads it any more.
        self.reader_gone: Callable[[], None] = lambda: None
        self._colours: dict[str, int] = {}
        #: Of each part: what it said last, and how often again.
        self._last: dict[str, tuple[str, int]] = {}

    def part(self, name: str, text: str) -> None:
        if self._quiet:
            return
        last, again = self._last.get(name, ("", 0))
        if text and text == last:
            self._last[name] = (last, again + 1)
            return
        self.end(name)
        self._last[name] = (text, 0)
        self._print(name, text, self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)]))

    def end(self, name: str) -> None:
        """Tell how often a part repeated what it said last; what it says next is printed, the same or not."""
        last, again = self._last.pop(name, ("", 0))
        if again:
            times = "once" if again == 1 else f"{again} times"
            self._print(name, f"… and {times} more: {last}", self._colours[name])

    def say(self, text: str) -> None:
        self._print("recorrido", text, 1)

    def complain(self, text: str) -> None:
        for line in text.splitlines():
            self._print("recorrido", line, _RED)

    def _print(self, name: str, text: str, colour: int) -> None:
        prefix = f"{name:<{self._width}} |"
        if self._colour:
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        try:
            print(prefix, text, file=self._stream, flush=True)
        except (OSError, ValueError) as error:  # what is told goes nowhere; the files still tell
            self._quiet = True
            if isinstance(error, BrokenPipeError):
                self.reader_gone()


class PartLog:
    """The output of one part: bytes in, lines out.

    While it is `held`, the console sees only warnings and worse, but for those that match `harmless`; the file has
    everything.

    The file is turned over to `<part>.log.1` when it reaches its cap, so it takes at most twice that.
    """

    def __init__(
        self, name: str, folder: Path, console: Console, *, harmless: str = "", cap_bytes: int = FILE_CAP_BYTES
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.last: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self.held = False
        self._name = name
        self._console = console
        self._harmless = re.compile(harmless) if harmless else None
        self._path = folder / f"{name}.log"
        self._cap_bytes = cap_bytes
        self._file = self._path.open("ab")
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """Take what was read; a line is passed on when it is complete or too long to wait for."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._write(line)
        if len(self._rest) > LINE_CAP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Pass on a line without an end."""
        if self._rest:
            self._write(self._rest)
            self._rest = b""

    def end(self) -> None:
        """Pass on what is left of a part that ended."""
        self.flush()
        self._console.end(self._name)

    def close(self) -> None:
        self.end()
        self._file.close()

    def _write(self, line: bytes) -> None:
        if self._file.tell() + len(line) >= self._cap_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._path.open("ab")
        self._file.write(line + b"\n")
        self._file.flush()
        text = line.decode(errors="replace").rstrip("\r")
        self.last.append(text)
        if not self.held or (_ALARM.search(text) and not (self._harmless and self._harmless.search(text))):
            self._console.part(self._name, text)
