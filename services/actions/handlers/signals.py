"""Signals."""

from collections.abc import Sequence

from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.action import Action, stream_of
from services.actions.domain.commands import OpenRecovery
from services.foundation.bus import Answer, Delivery, Done, Reaction, Skip, answer_to
from services.foundation.errors import InvalidError
from services.foundation.events import CAUSATION_ID, CORRELATION_ID
from services.foundation.execute import Executor, Intent


class Recoveries:
    """Opens one recovery per signal."""

    def __init__(self, executor: Executor[Action]) -> None:
        self._executor = executor

    @property
    def reaction(self) -> Reaction:
        return Reaction(
            durable="actions-recoveries",
            types=(SignalRaised,),
            handle=self.open,
            batch_size=256,
            description="opens one recovery per signal",
        )

    async def open(self, deliveries: Sequence[Delivery]) -> Sequence[Answer]:
        answers: list[Answer] = [Done()] * len(deliveries)
        intents = {}
        for index, delivery in enumerate(deliveries):
            try:
                command = OpenRecovery(signal=delivery.event, occurred_at=delivery.recorded.recorded_at)
            except InvalidError as error:
                answers[index] = Skip(error.message)
            else:
                intents[index] = Intent(
                    stream_of(command.action_id),
                    command,
                    metadata=_caused_by(delivery),
                    context=delivery.context,
                    because=delivery.recorded,
                )
        executed = await self._executor.execute_all(list(intents.values()))
        for index, outcome in zip(intents, executed, strict=True):
            answers[index] = answer_to(outcome.error)
        return answers


def _caused_by(delivery: Delivery) -> dict[str, str]:
    cause = str(delivery.recorded.event_id)
    return {CAUSATION_ID: cause, CORRELATION_ID: delivery.recorded.metadata.get(CORRELATION_ID, cause)}
