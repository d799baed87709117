"""Mappings and files for tests of the importers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from services.cli.importing.files import read
from services.cli.importing.mapping import ImportMapping
from services.cli.importing.records import Record, opened
from services.cli.importing.rows import Mapper, Row

#: The least that a mapping has to tell.
FIELDS: dict[str, Any] = {
    "source": {"value": "shop"},
    "interaction_id": "id",
    "customer_id": "customer",
    "touchpoint": "event",
    "channel": {"value": "web"},
    "occurred_at": "when",
}
WHEN = "2026-02-03T12:00:00Z"
HEADER = "id,customer,event,when,words"


def mapping(
    format_: str = "csv", *, drop: Iterable[str] = (), more: dict[str, Any] | None = None, **fields: Any
) -> ImportMapping:
    interaction = {name: value for name, value in {**FIELDS, **fields}.items() if name not in drop}
    return ImportMapping.model_validate({"format": format_, "interaction": interaction, **(more or {})})


def records(path: Path, told: ImportMapping) -> list[Record]:
    with opened(path) as source:
        return list(read(source, told))


def read_into(found: list[Record], path: Path, told: ImportMapping) -> None:
    """As `records`, keeping what stands before an error."""
    with opened(path) as source:
        found.extend(read(source, told))


def rows(path: Path, told: ImportMapping) -> list[Row]:
    mapper = Mapper(told)
    return [mapper.row(record) for record in records(path, told)]


def row_of(told: ImportMapping, **content: Any) -> Row:
    """Return what becomes of one record that has all that is required, changed by `content`."""
    whole = {"id": "1", "customer": "ana", "event": "bought", "when": WHEN, **content}
    return Mapper(told).row(Record("file.csv", 7, whole, 1))
