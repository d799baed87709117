"""How two model versions differ over the same verbatims. Pure, but for the walk through the history at the end."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from recorrido.inference.v1.events import Analysis, Aspect
from recorrido.ingest.v1.events import InteractionRecorded
from services.foundation.eventstore import EventStore
from services.foundation.masking import Masker
from services.inference.domain import Result
from services.inference.handlers import Handlers
from services.inference.history import Slice, Work, pages, spoken_in, verbatims_of
from services.inference.opinions import FIELDS, Verbatim

UNSURE = "unsure"
NONE = "none"
EXAMPLE_CHARACTERS = 200
#: Verbatims compared together; what the models have not said yet they are asked in one batch.
BATCH = 64


def label(analysis: Analysis, aspect: Aspect) -> str:
    """Return an answer in lower case: of needs the first level; empty where the model does not answer this."""
    if aspect in analysis.unsure:
        return UNSURE
    value = getattr(analysis, FIELDS[aspect])
    if aspect is Aspect.NEED:
        return value.partition("/")[0] or NONE
    if aspect is Aspect.LANGUAGE:
        return value or UNSURE
    return "" if value.name == "UNSPECIFIED" else str(value.name).lower()


@dataclass(frozen=True, slots=True)
class Example:
    """`text` is masked and cut."""

    interaction_event_id: str
    text: str
    base: str
    other: str


@dataclass(slots=True)
class AspectDifference:
    """`pairs` counts how often one label met the other; `judged` those of which a person said what is right."""

    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    judged: int = 0
    base_right: int = 0
    other_right: int = 0

    @property
    def compared(self) -> int:
        return self.pairs.total()

    @property
    def changed(self) -> int:
        return sum(count for (base, other), count in self.pairs.items() if base != other)


@dataclass(slots=True)
class Differences:
    """`compared` verbatims were analysed by both; `failed` ones by at most one of them."""

    max_examples: int
    mask: Masker
    compared: int = 0
    failed: int = 0
    aspects: dict[Aspect, AspectDifference] = field(default_factory=lambda: defaultdict(AspectDifference))

    def add(self, verbatim: Verbatim, base: Result | None, other: Result | None) -> None:
        """Count one verbatim and what the versions say of it."""
        if not (isinstance(base, Analysis) and isinstance(other, Analysis)):
            self.failed += 1
            return
        self.compared += 1
        judgement = verbatim.correction.event.analysis if verbatim.correction else None  # type: ignore[union-attr]
        for aspect in FIELDS:
            one, two = label(base, aspect), label(other, aspect)
            if not one or not two:
                continue
            found = self.aspects[aspect]
            found.pairs[one, two] += 1
            if one != two and len(found.examples) < self.max_examples:
                text = self.mask.text(verbatim.text)[:EXAMPLE_CHARACTERS]
                found.examples.append(Example(str(verbatim.recorded.event_id), text, one, two))
            if judgement is not None and aspect in judgement.corrected:
                right = label(judgement, aspect)
                found.judged += 1
                found.base_right += one == right
                found.other_right += two == right


class Comparisons:
    """Compares versions over the history."""

    def __init__(self, store: EventStore, handlers: Handlers) -> None:
        self._store = store
        self._handlers = handlers

    async def run(self, versions: tuple[str, str], part: Slice, most: int, work: Work, found: Differences) -> None:
        """Compare the first `most` verbatims (0: all) of a slice; how far it is shows in `work`.

        What a version has said is taken from the history; what it has not, it is asked now, if it is served.
        """
        served = {model.version for model in await work.patiently(self._handlers.models) if model.state == "READY"}
        async with aclosing(pages(self._store, work, InteractionRecorded)) as history:
            async for page in history:
                wanted = spoken_in(page, part)[: most - work.verbatims if most else None]
                known = await work.patiently(partial(verbatims_of, self._store, [each.recorded for each in wanted]))
                # One that is gone was erased since.
                meant = [known[event_id] for each in wanted if (event_id := str(each.recorded.event_id)) in known]
                for start in range(0, len(meant), BATCH):
                    batch = meant[start : start + BATCH]
                    said = [await self._said(batch, version, work, ask=version in served) for version in versions]
                    for verbatim, base, other in zip(batch, *said, strict=True):
                        found.add(verbatim, base, other)
                    work.verbatims += len(batch)
                work.position = page[-1].position
                if most and work.verbatims >= most:
                    break
                # What is counted is not awaited: others may go on, too.
                await asyncio.sleep(0)
        work.complete = True

    async def _said(self, batch: Sequence[Verbatim], version: str, work: Work, *, ask: bool) -> list[Result | None]:
        said: list[Result | None] = [
            next((a for a in reversed(each.analyses) if a.model_version == version), None) for each in batch
        ]
        missing = [index for index, result in enumerate(said) if result is None]
        if missing and ask:
            answers = await work.patiently(partial(self._handlers.analyze, [batch[i].text for i in missing], version))
            for index, answer in zip(missing, answers, strict=True):
                said[index] = answer
        return said
