"""Command → decide → append, for batches: each interaction has a result of its own, whatever becomes of the others."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from recorrido.ingest.v1.events import InteractionRecorded
from services.foundation.errors import ConflictError, RecorridoError, UnavailableError
from services.foundation.execute import Executed, Executor, Intent, event_id_of
from services.ingest.domain import Known, RecordInteraction

#: A store limits what one append may hold; KurrentDB's default for a whole append was 1 MiB for years.
MAX_APPEND_BYTES = 1024 * 1024
#: What event type, metadata and envelope add to each event.
_ENVELOPE_BYTES = 512


@dataclass(frozen=True, slots=True)
class Recording:
    """What became of one interaction. `event_id` is that of its event, `duplicate` when that was there before."""

    event_id: str
    duplicate: bool


Result = Recording | RecorridoError
Numbered = tuple[int, RecordInteraction]


class Handlers:
    """Records interactions."""

    def __init__(self, executor: Executor[Known]) -> None:
        self._executor = executor

    async def record(
        self, commands: Sequence[RecordInteraction | RecorridoError], metadata: Mapping[str, str]
    ) -> list[Result]:
        """Return one result per command, in order; a command that is an error already is its own result.

        Appends in portions that a store takes. When it stops answering, what was appended stays recorded and the rest
        comes to UnavailableError: repeating the whole batch is safe.
        """
        results: dict[int, Result] = {i: c for i, c in enumerate(commands) if isinstance(c, RecorridoError)}
        valid = [(i, c) for i, c in enumerate(commands) if isinstance(c, RecordInteraction)]
        lost: UnavailableError | None = None
        for portion in _portions(valid):
            intents = [Intent(command.stream, command, metadata) for _, command in portion]
            # A store that is gone takes its time not to answer, and the caller waits for the results there are.
            outcomes = await self._append(intents) if lost is None else [lost] * len(intents)
            lost = next((o for o in outcomes if isinstance(o, UnavailableError)), None)
            results.update(zip((index for index, _ in portion), outcomes, strict=True))
        return [results[index] for index in range(len(commands))]

    async def _append(self, intents: Sequence[Intent]) -> Sequence[Result]:
        try:
            executed = await self._executor.execute_all(intents, assume_new=True)
        except (ConflictError, UnavailableError) as error:
            return [error] * len(intents)
        return [_result(i, e) for i, e in zip(intents, executed, strict=True)]


def _portions(valid: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    portion: list[Numbered] = []
    size = 0
    for index, command in valid:
        more = command.size_bytes + _ENVELOPE_BYTES
        if portion and size + more > MAX_APPEND_BYTES:
            yield portion
            portion, size = [], 0
        portion.append((index, command))
        size += more
    if portion:
        yield portion


def _result(intent: Intent, executed: Executed[Known]) -> Result:
    if executed.error is not None:
        return executed.error
    return Recording(str(event_id_of(intent, InteractionRecorded)), duplicate=not executed.events)
