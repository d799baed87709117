"""CloudEvents 1.0 in the JSON format: one per line, a batch (a JSON array), or structured-mode files of one event.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

import base64
import binascii
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from services.cli.importing.formats import jsonfiles
from services.cli.importing.records import Opened, Record, unreadable

_REQUIRED = ("id", "source", "specversion", "type")


def records(source: Opened) -> Iterator[Record]:
    """Yield the events, with `data` decoded; what is no CloudEvent has no content."""
    for record in jsonfiles.records(source):
        if record.content is None:
            yield record
            continue
        try:
            yield dataclasses.replace(record, content=_event(record.content))
        except ValueError as error:
            raw = msgspec.json.encode(record.content).decode()
            yield unreadable(record.file, record.line, record.position, f"is no CloudEvent: {error}", raw)


def _event(content: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in _REQUIRED:
        if not isinstance(content.get(name), str) or not content[name]:
            raise ValueError(f"{name}: required, a text")
    if not content["specversion"].startswith("1."):
        raise ValueError(f"specversion: {content['specversion']:.20} is not 1.0")
    if "data_base64" not in content:
        return content
    if "data" in content:
        raise ValueError("data and data_base64: only one of them")
    try:
        binary = base64.b64decode(content["data_base64"], validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"data_base64: {error}") from None
    return {**content, "data": _data(binary, str(content.get("datacontenttype") or "application/json"))}


def _data(binary: bytes, media_type: str) -> Any:
    kind = media_type.partition(";")[0].strip().lower()
    if kind.endswith(("/json", "+json")):
        try:
            return jsonfiles.decode(binary)
        except ValueError as error:
            raise ValueError(f"data_base64: is no JSON, as datacontenttype says: {error}") from None
    if kind.startswith("text/"):
        return binary.decode(errors="replace")
    # Nothing of an image can be mapped.
    return None
