"""What callers ask for, checked: every broken rule of a request is named at once."""

import math
import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from recorrido.inference.v1 import inference_service_pb2 as pb
from recorrido.inference.v1.events import Aspect, Effort, Emotion, Intent, PointKind, Sentiment, Urgency
from services.foundation import rpc
from services.foundation.rules import MAX_CUSTOMER_ID, MAX_NAME, Rules
from services.inference.history import Slice
from services.inference.opinions import CorrectAnalysis
from services.inference.reanalysis import Reanalysis
from services.inference.taxonomy import Taxonomy

MAX_TEXTS = 1000
MAX_COMMENT = 1024
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


def check_texts(texts: Sequence[str], *, least: int) -> None:
    rules = Rules()
    rules.require(least <= len(texts) <= MAX_TEXTS, "texts", f"{least} to {MAX_TEXTS}, has {len(texts)}")
    rules.enforce()


def check_customer(customer_id: str) -> None:
    rules = Rules()
    rules.text("customer_id", customer_id, MAX_CUSTOMER_ID, required=True)
    rules.enforce()


def check_comparison(request: pb.CompareModelsRequest) -> None:
    """Raise InvalidError."""
    rules = Rules()
    rules.require(bool(request.base_version), "base_version", "required")
    other = request.other_version not in ("", request.base_version)
    rules.require(other, "other_version", "required, and another than base_version")
    rules.require(request.max_verbatims >= 0, "max_verbatims", "0 or more")
    rules.require(0 <= request.max_examples <= MAX_EXAMPLES, "max_examples", f"0 to {MAX_EXAMPLES}")
    rules.enforce()


def correction(request: pb.CorrectAnalysisRequest, taxonomy: Taxonomy) -> tuple[CorrectAnalysis, dict[str, str]]:
    """Return the command and the metadata of what comes of it. Raises InvalidError."""
    rules = Rules()
    rules.text("customer_id", request.customer_id, MAX_CUSTOMER_ID, required=True)
    rules.who_and_request(request.actor, request.request_id)
    try:
        event_id = str(UUID(request.interaction_event_id))
    except ValueError:
        rules.refuse("interaction_event_id", "the id of an InteractionRecorded event, a UUID")
    rules.text("comment", request.comment, MAX_COMMENT, lines=True)
    changes = _changes(request.correction, taxonomy, rules)
    rules.require(bool(changes), "correction", "at least one of its fields")
    rules.enforce()
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


def _changes(message: pb.Correction, taxonomy: Taxonomy, rules: Rules) -> dict[Aspect, Any]:
    changes: dict[Aspect, Any] = {}
    for field, (aspect, enum) in _ENUMS.items():
        if number := getattr(message, field):
            changes[aspect] = rules.known(f"correction.{field}", enum, number)
    if message.HasField("language"):
        changes[Aspect.LANGUAGE] = message.language
        known = bool(_LANGUAGE.fullmatch(message.language))
        rules.require(known, "correction.language", "two lower-case letters of ISO 639-1")
    if message.HasField("need_path"):
        changes[Aspect.NEED] = path = message.need_path
        if path and (rule := taxonomy.violation(path)):
            rules.refuse("correction.need_path", rule)
    return changes


def reanalysis(request: pb.ReanalyzeRequest) -> tuple[Reanalysis, float]:
    """Return what is asked for, and how many texts a second may go. Raises InvalidError."""
    rules = Rules()
    rules.text("actor", request.actor, MAX_NAME, required=True)
    rules.slug("reanalysis_id", request.reanalysis_id)
    rules.enforce()
    asked = Reanalysis(request.reanalysis_id, request.model_version, slice_of(request.slice), request.actor)
    return asked, pace(request.max_texts_per_second)


def pace(per_second: float) -> float:
    """Return the pace. Raises InvalidError."""
    rules = Rules()
    rules.require(math.isfinite(per_second) and per_second >= 0, "max_texts_per_second", "0 or more")
    rules.enforce()
    return per_second


def slice_of(message: pb.Slice) -> Slice:
    """Return what part of the history is meant. Raises InvalidError."""
    rules = Rules()
    from_time, to_time = rules.time(message, "from", "slice."), rules.time(message, "to", "slice.")
    if from_time and to_time:
        rules.require(from_time < to_time, "slice.to", "after slice.from")
    for field, names in (("customer_ids", message.customer_ids), ("sources", message.sources)):
        few = len(names) <= MAX_SLICE_NAMES
        rules.require(few, f"slice.{field}", f"at most {MAX_SLICE_NAMES}, has {len(names)}")
    rules.enforce()
    return Slice(
        from_time=from_time,
        to_time=to_time,
        customer_ids=frozenset(message.customer_ids),
        sources=frozenset(message.sources),
    )
