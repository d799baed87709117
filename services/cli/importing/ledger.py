"""What became of the records of a file, in their order, and how far an import has come."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import msgspec

Outcome = Literal["recorded", "duplicates", "rejected", "skipped", "linked"]

_SAVE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that was not taken, and why."""

    file: str
    line: int
    interaction_id: str
    reason: str
    message: str

    def as_line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"


@dataclass(slots=True)
class Counts:
    recorded: int = 0
    duplicates: int = 0
    rejected: int = 0
    skipped: int = 0
    linked: int = 0

    def add(self, other: "Counts") -> None:
        for each in dataclasses.fields(Counts):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress file: of which content and mapping so many records are settled."""

    file_sha256: str
    mapping_sha256: str
    records: int = 0
    #: How much of the file of errors is about these records.
    errors_bytes: int = 0
    done: bool = False


def progress_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.progress.json")


def read_progress(path: Path, file_sha256: str, mapping_sha256: str) -> Progress | None:
    """Return how far an import of this content with this mapping has come, as far as that is known."""
    try:
        found = msgspec.json.decode(progress_path(path).read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError):
        # What was not written to its end tells nothing; to send something again does no harm.
        return None
    return found if (found.file_sha256, found.mapping_sha256) == (file_sha256, mapping_sha256) else None


class Ledger:
    """Takes in what became of each record, in any order, and gives it on in the order of the file.

    What is written, to the file of errors first and then to the progress file, is about all records up to one: after a
    sudden end nothing is missing and nothing stands twice.
    """

    def __init__(
        self, path: Path, start: Progress, errors: IO[bytes] | None, told: Callable[[Rejection], None]
    ) -> None:
        self.counts = Counts()
        #: So many records are settled, from the first on.
        self.settled = start.records
        #: Why the progress file could not be written.
        self.unwritable = ""
        self._path = progress_path(path)
        self._start = start
        self._errors = errors
        self._told = told
        self._early: dict[int, list[tuple[Outcome, Rejection | None]]] = {}
        #: Records that two answers are to come for.
        self._double: set[int] = set()
        self._saved_at = time.monotonic()

    def expect_two(self, number: int) -> None:
        """Take record `number` as settled only when two answers have come: it is an interaction and a link."""
        self._double.add(number)

    def settle(self, number: int, outcome: Outcome, rejection: Rejection | None = None) -> None:
        """Note what became of record `number`, counted from 1."""
        self._early.setdefault(number, []).append((outcome, rejection))
        while len(self._early.get(self.settled + 1, ())) > (self.settled + 1 in self._double):
            self.settled += 1
            self._double.discard(self.settled)
            self._pass(self._early.pop(self.settled))
        if time.monotonic() - self._saved_at > _SAVE_EVERY_S:
            self.save()

    def _pass(self, answers: list[tuple[Outcome, Rejection | None]]) -> None:
        refused = any(outcome == "rejected" for outcome, _ in answers)
        for outcome in {"rejected"} if refused else {outcome for outcome, _ in answers}:
            setattr(self.counts, outcome, getattr(self.counts, outcome) + 1)
        for _, rejection in answers:
            if rejection:
                self._told(rejection)
                if self._errors:
                    self._errors.write(rejection.as_line())

    def save(self, *, done: bool = False) -> None:
        """Write the progress file; where that is not possible, note why."""
        self._saved_at = time.monotonic()
        written = 0
        if self._errors:
            self._errors.flush()
            written = self._errors.tell()
        progress = msgspec.structs.replace(self._start, records=self.settled, errors_bytes=written, done=done)
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            beside.write_bytes(msgspec.json.encode(progress))
            beside.replace(self._path)
        except OSError as error:
            self.unwritable = f"{beside}: {error.strerror}"


@dataclass(slots=True)
class Told:
    """What a person is told at the end: counts, so many rejections, files that end badly, and why rows were skipped."""

    most: int
    counts: Counts = field(default_factory=Counts)
    first: list[Rejection] = field(default_factory=list)
    broken: list[Rejection] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def rejection(self, rejection: Rejection) -> None:
        if len(self.first) < self.most:
            self.first.append(rejection)

    def skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
