"""Webhooks: commands of people, and the deliveries.

Each webhook has a worker of its own, so that one whose receiver is slow stalls no other. What is to be delivered stands
in the outbox and is claimed for a while: whoever dies in between loses nothing, and it is tried again.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NoReturn, Protocol
from uuid import UUID

import structlog
from msgspec import json

from recorrido.actions.v1.events import DeliveryAbandoned, WebhookPaused
from services.actions.domain.webhooks import (
    CLAIMED_S,
    AbandonDelivery,
    ChangeWebhook,
    Command,
    Keyring,
    Webhook,
    Webhooks,
    WebhookSecret,
    signature,
    wait_s,
    webhook_stream,
)
from services.foundation.errors import RecorridoError, RefusedError, UnavailableError
from services.foundation.events import Recorded
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executed, Executor, Intent

LOG = structlog.get_logger()

#: Deliveries to one receiver at the same time.
AT_ONCE = 8
#: Deliveries that are claimed together for a receiver who answers each within about `_QUICK_S`; for a slower one, no
#: more than are sent at once, so that what is claimed is sent while it is ours.
BATCH = 64
_QUICK_S = 0.5
#: After so many it is noted what was delivered. Whoever dies before delivers them again.
_NOTED = 16
LOOK_EVERY_S = 0.25
PRUNE_EVERY = timedelta(minutes=5)
_GONE = 410
#: Who pauses a webhook whose receiver is gone.
RECEIVER = "receiver"


class Due(Protocol):
    """A delivery that is to be tried now."""

    @property
    def delivery_id(self) -> str: ...
    @property
    def webhook_id(self) -> str: ...
    @property
    def event_id(self) -> UUID: ...
    @property
    def event_type(self) -> str: ...
    @property
    def stream(self) -> str: ...
    @property
    def revision(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def first_at(self) -> datetime: ...


class Answer(Protocol):
    """What a receiver answered."""

    @property
    def status(self) -> int: ...
    @property
    def error(self) -> str: ...
    @property
    def retry_after_s(self) -> float: ...


class Outbox(Protocol):
    """What is to be delivered."""

    async def busy(self, now: datetime) -> Sequence[str]: ...
    async def claim(self, webhook_id: str, now: datetime, count: int) -> Sequence[Any]: ...
    async def release(self, dues: Sequence[Any], now: datetime) -> None: ...
    async def delivered(self, dues: Sequence[tuple[Any, int]], now: datetime) -> None: ...
    async def failed(self, due: Any, status: int, error: str, again_at: datetime | None) -> None: ...
    async def forget(self, due: Any) -> None: ...
    async def work_off(self, now: datetime) -> None: ...
    async def prune(self, now: datetime) -> bool: ...


class Receivers(Protocol):
    """Who is told."""

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer: ...


class _Claimed:
    """Deliveries that were claimed together: what is not begun `before` (monotonic) will not be ours any more."""

    def __init__(self, webhook: Webhook, dues: Sequence[Due], before: float) -> None:
        self.webhook = webhook
        self.dues = dues
        self.before = before
        self.waiting = iter(dues)
        self.events: Mapping[UUID, Recorded] = {}
        #: With the status of each answer, until it is noted.
        self.delivered: list[tuple[Due, int]] = []
        self.late: list[Due] = []


class WebhookHandlers:
    """Executes commands, and delivers while `run` runs."""

    def __init__(
        self,
        store: EventStore,
        outbox: Outbox,
        receivers: Receivers,
        keyring: Keyring,
        clock: Callable[[], datetime],
        *,
        first_wait_s: float,
        give_up_s: float,
    ) -> None:
        """Deliver from `outbox` to `receivers`.

        Args:
            store: holds webhooks and events.
            outbox: what is to be delivered.
            receivers: sends.
            keyring: tells the secrets that sign.
            clock: tells the present moment, UTC.
            first_wait_s: about how long to wait after the first failure.
            give_up_s: how long after the first attempt a delivery is abandoned.
        """
        self._store = store
        self._executor = Executor(store, Webhooks())
        self._outbox = outbox
        self._receivers = receivers
        self._keyring = keyring
        self._clock = clock
        self._first_wait_s = first_wait_s
        self._give_up = timedelta(seconds=give_up_s)
        self._workers: dict[str, asyncio.Task[None]] = {}

    async def execute(
        self, webhook_id: str, command: Command, metadata: Mapping[str, str] | None = None
    ) -> Executed[Webhook]:
        """Execute a command; raises what the decider refuses with, ConflictError and UnavailableError."""
        return await self._executor.execute(Intent(webhook_stream(webhook_id), command, metadata or {}))

    async def key_ids(self, webhook_ids: Sequence[str]) -> Sequence[str]:
        """Return which key the secret of each webhook is derived from; empty: of none. Raises UnavailableError."""
        folded = await asyncio.gather(*(self._executor.load(webhook_stream(each)) for each in webhook_ids))
        return [each.state.secret.key_id if each.state.secret else "" for each in folded]

    async def run(self) -> None:
        """Deliver for ever; while a part is down, wait for it."""
        pruned: datetime | None = None
        try:
            while True:
                now = self._clock()
                try:
                    for webhook_id in await self._outbox.busy(now):
                        if webhook_id not in self._workers:
                            worker = asyncio.create_task(self._work(webhook_id))
                            self._workers[webhook_id] = worker
                            worker.add_done_callback(lambda _, key=webhook_id: self._workers.pop(key, None))  # type: ignore[misc]
                    await self._outbox.work_off(now)
                    if (pruned is None or now - pruned > PRUNE_EVERY) and not await self._outbox.prune(now):
                        pruned = now
                except UnavailableError as error:
                    LOG.warning("webhooks wait", error=error.message)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            workers = list(self._workers.values())
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, webhook_id: str) -> None:
        try:
            count = AT_ONCE
            while found := await self._outbox.claim(webhook_id, self._clock(), count):
                started = time.monotonic()
                webhook = (await self._executor.load(webhook_stream(webhook_id))).state
                if webhook.paused or webhook.deleted:
                    # Which the outbox has not heard of: it may be behind for long.
                    await self._outbox.release(found, self._clock())
                    return
                await self._deliver_all(_Claimed(webhook, found, started + CLAIMED_S))
                quick = time.monotonic() - started < _QUICK_S * len(found) / AT_ONCE
                count = BATCH if quick else AT_ONCE
        except RecorridoError as error:
            LOG.warning("webhook waits", webhook_id=webhook_id, error=error.message)
        except Exception:
            LOG.exception("webhook failed, trying again", webhook_id=webhook_id)

    async def _deliver_all(self, claimed: "_Claimed") -> None:
        """Deliver some at once, and give back what was not begun in time."""
        claimed.events = await self._events(claimed.dues)
        senders = [asyncio.create_task(self._send(claimed)) for _ in range(min(AT_ONCE, len(claimed.dues)))]
        try:
            await asyncio.wait(senders)
        finally:
            for sender in senders:
                sender.cancel()
            ended = await asyncio.gather(*senders, return_exceptions=True)
            await self._note(claimed)
        if claimed.late:
            await self._outbox.release(claimed.late, self._clock())
        for each in ended:
            if each is not None:
                raise each

    async def _send(self, claimed: "_Claimed") -> None:
        for due in claimed.waiting:
            if time.monotonic() >= claimed.before:
                claimed.late.append(due)
            elif status := await self._deliver(claimed.webhook, due, claimed.events.get(due.event_id)):
                claimed.delivered.append((due, status))
                if len(claimed.delivered) >= _NOTED:
                    await self._note(claimed)

    async def _note(self, claimed: "_Claimed") -> None:
        noted, claimed.delivered = claimed.delivered, []
        if noted:
            await self._outbox.delivered(noted, self._clock())

    async def _events(self, dues: Sequence[Due]) -> dict[UUID, Recorded]:
        """Return the events of deliveries that stand close together in the history."""
        if len(dues) == 1:
            return {}
        types = {due.event_type for due in dues}
        events = self._store.read_all(min(due.position for due in dues), types, limit=len(dues))
        return {recorded.event_id: recorded async for recorded in events}

    async def _deliver(self, webhook: Webhook, due: Due, known: Recorded | None) -> int:
        """Try once; return the status where it succeeded, else 0."""
        if known is None:
            found = await self._store.read(due.stream, after=due.revision - 1, limit=1)
            if not found or found[0].event_id != due.event_id:
                # Erased with its customer.
                await self._outbox.forget(due)
                return 0
            known = found[0]
        body, now = content(known), self._clock()
        timestamp = int(now.timestamp())
        try:
            # During a rotation the key of the secret before may be gone already.
            present, *before = webhook.secrets(now) or _no_secret()
            secrets = [self._keyring.secret(present), *self._known(before)]
        except RefusedError as error:
            await self._failed(due, 0, error.message)
            return 0
        headers = {
            "content-type": "application/cloudevents+json",
            "webhook-id": due.delivery_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(secrets, due.delivery_id, timestamp, body),
        }
        answer = await self._receivers.send(webhook.url, headers, body)
        if not answer.error:
            return answer.status
        await self._failed(due, answer.status, answer.error, answer.retry_after_s)
        return 0

    def _known(self, secrets: Sequence[WebhookSecret]) -> Iterator[str]:
        for each in secrets:
            with contextlib.suppress(RefusedError):
                yield self._keyring.secret(each)

    async def _failed(self, due: Due, status: int, why: str, retry_after_s: float = 0.0) -> None:
        now, given_up_at = self._clock(), due.first_at + self._give_up
        again_at: datetime | None = now + timedelta(
            seconds=wait_s(due.attempts, self._first_wait_s, random.random(), retry_after_s)  # noqa: S311 - no secret
        )
        if status == _GONE:
            await self._pause(due)
        elif now >= given_up_at:
            again_at = None
            abandoned = DeliveryAbandoned(
                webhook_id=due.webhook_id,
                delivery_id=due.delivery_id,
                event_id=str(due.event_id),
                event_type=due.event_type,
                attempts=due.attempts,
                error=why,
                occurred_at=given_up_at,
            )
            await self.execute(due.webhook_id, AbandonDelivery(abandoned=abandoned))
        await self._outbox.failed(due, status, why, again_at)

    async def _pause(self, due: Due) -> None:
        command = ChangeWebhook(
            changed=WebhookPaused,
            webhook_id=due.webhook_id,
            actor=RECEIVER,
            reason="it answered 410 Gone",
            request_id=f"gone {due.delivery_id} {due.attempts} {due.first_at}"[:128],
            occurred_at=self._clock(),
        )
        try:
            await self.execute(due.webhook_id, command)
        except UnavailableError:
            raise
        except RecorridoError as error:
            # It is paused, or deleted, already.
            LOG.info("webhook is not paused", webhook_id=due.webhook_id, error=error.message)


def _no_secret() -> NoReturn:
    raise RefusedError("NO_WEBHOOK_SECRET", "the webhook has no secret that could sign; rotate it")


def content(recorded: Recorded) -> bytes:
    """Return an event as a CloudEvent in structured content mode (JSON event format 1.0)."""
    return json.encode(
        {
            "specversion": "1.0",
            "id": str(recorded.event_id),
            "source": "/recorrido/actions",
            "type": recorded.type_name,
            "subject": recorded.stream,
            "time": recorded.recorded_at.isoformat(),
            "datacontenttype": "application/json",
            "recorridoposition": str(recorded.position),
            **({"traceparent": recorded.metadata["traceparent"]} if "traceparent" in recorded.metadata else {}),
            "data": json.decode(recorded.data),
        }
    )
