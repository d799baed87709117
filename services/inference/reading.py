"""What callers ask for, checked: every broken rule of a request is named at once."""

import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from recorrido.inference.v1 import inference_service_pb2 as pb
from recorrido.inference.v1.events import Aspect, Effort, Emotion, Intent, PointKind, Sentiment, Urgency
from services.foundation import rpc
from services.foundation.errors import InvalidError, Violation
from services.inference.history import Slice
from services.inference.opinions import CorrectAnalysis
from services.inference.reanalysis import REANALYSIS_ID, Reanalysis
from services.inference.taxonomy import Taxonomy

MAX_TEXTS = 1000
MAX_COMMENT = 1024
MAX_NAME = 128
MAX_SLICE_NAMES = 1000
MAX_EXAMPLES = 20

_LANGUAGE = re.compile(r"[a-z]{2}")
_ENUMS: dict[str, tuple[Aspect, Any]] = {
    "sentiment": (Aspect.SENTIMENT, Sentiment),
    "point": (Aspect.POINT, PointKind),
    "emotion": (Aspect.EMOTION, Emotion),
    "intent": (Aspect.INTENT, Intent),
    "effort": (Aspect.EFFORT, Effort),
    "urgency": (Aspect.URGENCY, Urgency),
}


def check(violations: Iterable[Violation]) -> None:
    """Raise InvalidError where there are any."""
    if found := list(violations):
        raise InvalidError(found)


def check_texts(texts: Sequence[str], *, least: int) -> None:
    if not least <= len(texts) <= MAX_TEXTS:
        raise InvalidError([Violation("texts", f"{least} to {MAX_TEXTS}, has {len(texts)}")])


def check_customer(customer_id: str) -> None:
    check(_name("customer_id", customer_id, 1024))


def check_comparison(request: pb.CompareModelsRequest) -> None:
    """Raise InvalidError."""
    found = []
    if not request.base_version:
        found.append(Violation("base_version", "required"))
    if not request.other_version or request.other_version == request.base_version:
        found.append(Violation("other_version", "required, and another than base_version"))
    if request.max_verbatims < 0:
        found.append(Violation("max_verbatims", "0 or more"))
    if not 0 <= request.max_examples <= MAX_EXAMPLES:
        found.append(Violation("max_examples", f"0 to {MAX_EXAMPLES}"))
    check(found)


def correction(request: pb.CorrectAnalysisRequest, taxonomy: Taxonomy) -> tuple[CorrectAnalysis, dict[str, str]]:
    """Return the command and the metadata of what comes of it. Raises InvalidError."""
    found = [
        *_name("customer_id", request.customer_id, 1024),
        *_name("actor", request.actor, MAX_NAME),
        *_name("request_id", request.request_id, MAX_NAME),
    ]
    try:
        event_id = str(UUID(request.interaction_event_id))
    except ValueError:
        found.append(Violation("interaction_event_id", "the id of an InteractionRecorded event, a UUID"))
    if len(request.comment) > MAX_COMMENT:
        found.append(Violation("comment", f"at most {MAX_COMMENT} characters, has {len(request.comment)}"))
    changes, broken = _changes(request.correction, taxonomy)
    found += broken
    if not changes:
        found.append(Violation("correction", "at least one of its fields"))
    check(found)
    command = CorrectAnalysis(
        interaction_event_id=event_id,
        customer_id=request.customer_id,
        changes=changes,
        taxonomy_version=taxonomy.version,
        actor=request.actor,
        comment=request.comment,
        request_id=request.request_id,
    )
    return command, rpc.metadata()


def _changes(message: pb.Correction, taxonomy: Taxonomy) -> tuple[dict[Aspect, Any], list[Violation]]:
    changes: dict[Aspect, Any] = {}
    found = []
    for field, (aspect, enum) in _ENUMS.items():
        if number := getattr(message, field):
            changes[aspect] = enum.from_number(number)
            if changes[aspect] is enum.UNSPECIFIED:
                found.append(Violation(f"correction.{field}", "one of the known values"))
    if message.HasField("language"):
        changes[Aspect.LANGUAGE] = message.language
        if not _LANGUAGE.fullmatch(message.language):
            found.append(Violation("correction.language", "two lower-case letters of ISO 639-1"))
    if message.HasField("need_path"):
        changes[Aspect.NEED] = path = message.need_path
        if path and (rule := taxonomy.violation(path)):
            found.append(Violation("correction.need_path", rule))
    return changes, found


def reanalysis(request: pb.ReanalyzeRequest) -> tuple[Reanalysis, float]:
    """Return what is asked for, and how many texts a second may go. Raises InvalidError."""
    found = list(_name("actor", request.actor, MAX_NAME))
    if not REANALYSIS_ID.fullmatch(request.reanalysis_id):
        found.append(Violation("reanalysis_id", "1 to 64 letters, digits, - and _"))
    check(found)
    asked = Reanalysis(request.reanalysis_id, request.model_version, slice_of(request.slice), request.actor)
    return asked, pace(request.max_texts_per_second)


def pace(per_second: float) -> float:
    """Return the pace. Raises InvalidError."""
    if not (math.isfinite(per_second) and per_second >= 0):
        raise InvalidError([Violation("max_texts_per_second", "0 or more")])
    return per_second


def slice_of(message: pb.Slice) -> Slice:
    """Return what part of the history is meant. Raises InvalidError."""
    found: list[Violation] = []

    def time(field: str, timestamp: Timestamp) -> datetime | None:
        if not message.HasField(field):  # type: ignore[arg-type]  # one of two names
            return None
        try:
            return timestamp.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            found.append(Violation(f"slice.{field}", "a valid timestamp, of the years 1 to 9999"))
            return None

    from_time = time("from", getattr(message, "from"))
    to_time = time("to", message.to)
    if from_time and to_time and to_time <= from_time:
        found.append(Violation("slice.to", "after slice.from"))
    for field, names in (("customer_ids", message.customer_ids), ("sources", message.sources)):
        if len(names) > MAX_SLICE_NAMES:
            found.append(Violation(f"slice.{field}", f"at most {MAX_SLICE_NAMES}, has {len(names)}"))
    check(found)
    return Slice(
        from_time=from_time,
        to_time=to_time,
        customer_ids=frozenset(message.customer_ids),
        sources=frozenset(message.sources),
    )


def _name(field: str, value: str, most: int) -> Iterable[Violation]:
    if not value or value.isspace() or "\0" in value:
        yield Violation(field, "required, not blank, no NUL")
    elif len(value) > most:
        yield Violation(field, f"at most {most} characters, has {len(value)}")
