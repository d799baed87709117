"""`import file FILE… --mapping MAPPING`: somebody's files, as a mapping says."""

import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict, MessageToJson
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from recorrido.ingest.v1.identity_service_pb2_grpc import IdentityServiceStub
from recorrido.ingest.v1.ingest_service_pb2 import (
    FieldViolation,
    RecordInteractionsRequest,
    RecordResult,
    RecordStatus,
    Unreadable,
)
from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from recorrido.ingest.v1.interaction_pb2 import Interaction
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError
from services.cli.importing import ledger as state
from services.cli.importing import mapping as form
from services.cli.importing.formats import cloudevents, delimited, jsonfiles, segment, xes
from services.cli.importing.ledger import Ledger, Rejection, Told
from services.cli.importing.linking import Linker
from services.cli.importing.recording import FIRST_ANSWER_S, Pause, patiently, record
from services.cli.importing.records import BrokenFileError, Opened, Record, digest, opened
from services.cli.importing.rows import Mapper, Row
from services.cli.options import run

SHOWN = 20

#: Of records that no interaction could be made of, and of files that end badly.
UNREADABLE, BROKEN_FILE = "UNREADABLE", "BROKEN_FILE"

_UPDATE_EVERY = 200

Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


def import_file(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="The files, gzipped or not.")],
    *,
    mapping: Annotated[Path, typer.Option(metavar="MAPPING", help="The YAML file that tells what is what.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an import of the same was interrupted.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing: show what would be sent.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="With --dry-run: how many interactions to show.")] = 10,
    errors: Annotated[
        Path | None, typer.Option(metavar="ERRORS.jsonl", help="A file for every row that was not taken, and why.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import CSV, TSV, JSON Lines, Segment calls, CloudEvents or XES logs; the mapping says which."""
    found = form.load(mapping)
    if dry_run:
        _dry_run(files, found, limit, errors, as_json=as_json)
    else:
        run(_import(files, found, errors, resume=resume, as_json=as_json))


@dataclass(frozen=True, slots=True)
class _Job:
    path: Path
    start: state.Progress


@dataclass(frozen=True, slots=True)
class _Tag:
    """What is known of an interaction that was sent."""

    number: int
    row: Row


# -- reading ---------------------------------------------------------------------------------------------------------


def read(source: Opened, mapping: form.ImportMapping) -> Iterator[Record]:
    """Yield the records of a file.

    Raises:
        CommandError: it is not the file that the mapping is for.
        BrokenFileError: it cannot be read to its end.
    """
    if mapping.format in {"csv", "tsv"}:
        options = mapping.csv or form.CsvOptions()
        if mapping.format == "tsv" and not options.delimiter:
            options = options.model_copy(update={"delimiter": "\t"})
        return delimited.records(source, options, mapping.paths())
    readers = {
        "jsonl": jsonfiles.records,
        "segment": segment.records,
        "cloudevents": cloudevents.records,
        "xes": xes.records,
    }
    return readers[mapping.format](source)


def _checked(files: Sequence[Path], mapping: form.ImportMapping) -> None:
    """Make sure that every file can be opened and begins as the mapping says, before anything is sent."""
    for path in files:
        try:
            with opened(path) as source:
                next(read(source, mapping), None)
        except BrokenFileError:
            # Told when it is its turn: what stands before is good.
            continue


class _Reading:
    """Gives rows and moves the bar."""

    def __init__(self, path: Path, mapping: form.ImportMapping, bars: Progress, *, passed: int = 0) -> None:
        self._path = path
        self._mapping = mapping
        self._bars = bars
        self._passed = passed
        #: Why it could not be read to its end.
        self.broken: list[Rejection] = []

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the rows with their numbers, from 1, but those that are settled; an end before the end is noted."""
        mapper = Mapper(self._mapping)
        task = self._bars.add_task(self._path.name, total=self._path.stat().st_size, rows="")
        number = 0
        try:
            with opened(self._path) as source:
                for number, record in enumerate(read(source, self._mapping), 1):
                    if number % _UPDATE_EVERY == 0:
                        self._bars.update(task, completed=source.taken_bytes, rows=f"{number:,} rows")
                    if number > self._passed:
                        yield number, mapper.row(record)
        except BrokenFileError as error:
            message = f"{error} (after {number:,} rows)"
            self.broken.append(Rejection(self._path.name, 0, "", BROKEN_FILE, message))
        size = self._path.stat().st_size
        self._bars.update(task, total=size, completed=size, rows=f"{number:,} rows")


def _bars(out: Console, *, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[rows]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=out,
        disable=not shown,
    )


# -- importing -------------------------------------------------------------------------------------------------------


async def _import(
    files: Sequence[Path], mapping: form.ImportMapping, errors: Path | None, *, resume: bool, as_json: bool
) -> None:
    out = show.console(stderr=True)
    started = time.monotonic()
    _checked(files, mapping)
    mapping_sha256 = sha256(mapping.model_dump_json().encode()).hexdigest()
    jobs = []
    for path in files:
        fresh = state.Progress(file_sha256=digest(path), mapping_sha256=mapping_sha256)
        kept = state.read_progress(path, fresh.file_sha256, mapping_sha256) if resume else None
        jobs.append(_Job(path, kept or fresh))
    told, unwritable = Told(SHOWN), ""
    addresses = Addresses.configured()
    with ExitStack() as stack:
        errors_file = stack.enter_context(_errors(errors, jobs)) if errors else None
        bars = stack.enter_context(_bars(out, shown=not as_json))
        async with clients.channel("ingest", addresses.ingest) as channel:
            ingest = IngestServiceStub(channel)
            greeting = partial(ingest.RecordInteractions, RecordInteractionsRequest(), timeout=DEADLINE_S)
            await patiently(greeting, Pause(FIRST_ANSWER_S))
            for job in jobs:
                if job.start.done:
                    continue
                ledger = Ledger(job.path, job.start, errors_file, told.rejection)
                reading = _Reading(job.path, mapping, bars, passed=job.start.records)
                whole = False
                try:
                    async with Linker(IdentityServiceStub(channel), addresses.ingest) as linker:
                        items = _items(reading, ledger, linker, told)
                        await record(ingest, items, partial(_settle, ledger), _unreadable)
                    told.broken.extend(reading.broken)
                    whole = not reading.broken
                finally:
                    # Whatever ended it, what is settled need not be sent again.
                    ledger.save(done=whole)
                    told.counts.add(ledger.counts)
                    unwritable = ledger.unwritable or unwritable
    if unwritable:
        out.print(show.plain(f"there is no progress file, so --resume would begin anew: {unwritable}"), style="yellow")
    before = sum(job.start.records for job in jobs)
    summary = {**asdict(told.counts), "settled_before": before, "seconds": round(time.monotonic() - started, 3)}
    _tell(summary, told, out, as_json=as_json)


def _errors(path: Path, jobs: Sequence[_Job]) -> AbstractContextManager[IO[bytes]]:
    """Open the file of errors, with what earlier runs wrote about the records that are settled."""
    try:
        file = path.open("r+b" if path.exists() else "w+b")
        file.truncate(min(max((job.start.errors_bytes for job in jobs), default=0), path.stat().st_size))
        file.seek(0, 2)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}") from error
    return file


async def _items(
    reading: _Reading, ledger: Ledger, linker: Linker, told: Told
) -> AsyncIterator[tuple[Interaction, _Tag]]:
    for number, row in reading.rows():
        if row.problems and row.interaction is None:
            ledger.settle(number, "rejected", _rejection(row, UNREADABLE, row.told))
            continue
        if row.links and not row.problems:
            if row.interaction is not None:
                ledger.expect_two(number)
            await linker.link(list(row.links), _linked(ledger, number, row))
        elif row.interaction is None:
            told.skip(row.skipped)
            ledger.settle(number, "skipped")
        if row.interaction is not None:
            yield row.interaction, _Tag(number, row)


def _unreadable(tag: _Tag) -> Unreadable | None:
    if not tag.row.problems:
        return None
    return Unreadable(violations=[FieldViolation(field=each.field, rule=each.why) for each in tag.row.problems])


def _linked(ledger: Ledger, number: int, row: Row) -> Callable[[str], None]:
    def settled(problem: str) -> None:
        if problem:
            ledger.settle(number, "rejected", _rejection(row, "LINK_REFUSED", problem))
        else:
            ledger.settle(number, "linked")

    return settled


def _settle(ledger: Ledger, done: Sequence[tuple[_Tag, RecordResult]]) -> None:
    for tag, result in done:
        if tag.row.problems:
            # Ingest refuses and keeps it; why it had to is known here.
            ledger.settle(tag.number, "rejected", _rejection(tag.row, UNREADABLE, tag.row.told))
        elif result.status == RecordStatus.RECORD_STATUS_RECORDED:
            ledger.settle(tag.number, "recorded")
        elif result.status == RecordStatus.RECORD_STATUS_DUPLICATE:
            ledger.settle(tag.number, "duplicates")
        else:
            problem = result.problem
            message = "; ".join(f"{each.field}: {each.rule}" for each in problem.violations) or problem.message
            ledger.settle(tag.number, "rejected", _rejection(tag.row, problem.reason, message))


def _rejection(row: Row, reason: str, message: str) -> Rejection:
    interaction_id = row.interaction.interaction_id if row.interaction else ""
    return Rejection(row.record.file, row.record.line, interaction_id, reason, message)


# -- trying ----------------------------------------------------------------------------------------------------------


def _dry_run(
    files: Sequence[Path], mapping: form.ImportMapping, limit: int, errors: Path | None, *, as_json: bool
) -> None:
    out = show.console(stderr=True)
    started = time.monotonic()
    _checked(files, mapping)
    # Whoever only looks wants to see all that is wrong.
    told, would_send = Told(sys.maxsize), 0
    shown: list[Interaction] = []
    with ExitStack() as stack:
        errors_file = stack.enter_context(_errors(errors, [])) if errors else None
        bars = stack.enter_context(_bars(out, shown=not as_json))
        for path in files:
            reading = _Reading(path, mapping, bars)
            for _, row in reading.rows():
                if row.problems:
                    rejection = _rejection(row, UNREADABLE, row.told)
                    told.counts.rejected += 1
                    told.rejection(rejection)
                    if errors_file:
                        errors_file.write(rejection.as_line())
                    continue
                told.counts.linked += bool(row.links)
                if row.interaction is not None:
                    would_send += 1
                    if len(shown) < limit:
                        shown.append(row.interaction)
                elif not row.links:
                    told.counts.skipped += 1
                    told.skip(row.skipped)
            told.broken.extend(reading.broken)
    counts = {name: number for name, number in asdict(told.counts).items() if name in {"rejected", "skipped", "linked"}}
    summary: dict[str, Any] = {"would_send": would_send, **counts, "seconds": round(time.monotonic() - started, 3)}
    if as_json:
        summary["interactions"] = [MessageToDict(each) for each in shown]
    else:
        for each in shown:
            sys.stdout.write(MessageToJson(each, indent=None, ensure_ascii=False) + "\n")
    _tell(summary, told, out, as_json=as_json)


# -- telling ---------------------------------------------------------------------------------------------------------


def _tell(summary: dict[str, Any], told: Told, out: Console, *, as_json: bool) -> None:
    if as_json:
        problems = [asdict(each) for each in (*told.first, *told.broken)]
        show.print_json({**summary, "skipped_by_reason": told.skipped, "problems": problems})
    else:
        for each in (*told.first, *told.broken):
            out.print(_line(each), style="yellow", soft_wrap=True)
        if told.counts.rejected > len(told.first):
            out.print(f"  and {told.counts.rejected - len(told.first):,} more", style="yellow")
        numbers = (f"{name.replace('_', ' ')} {number:,}" for name, number in summary.items() if name != "seconds")
        out.print(f"{', '.join(numbers)} · {summary['seconds']:.1f} s")
        for reason, number in told.skipped.items():
            out.print(Text.assemble("  ", show.plain(f"skipped {number:,}: {reason}")))
        if told.counts.rejected and "would_send" not in summary:
            out.print(f"  'recorrido rejected list' shows what is kept of them, what is {UNREADABLE} here as INVALID")
    if told.counts.rejected or told.broken:
        raise typer.Exit(1)


def _line(each: Rejection) -> Text:
    place = f"{each.file}, line {each.line}" if each.line else each.file
    text = show.plain(f"{place}: {each.reason}: {each.message}")
    # However long, it is what somebody has to read.
    text.no_wrap, text.overflow = False, None
    return Text.assemble("  ", text)
