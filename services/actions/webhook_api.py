"""WebhookService: protobuf to domain and back."""

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

from recorrido.actions.v1 import webhook_service_pb2 as pb
from recorrido.actions.v1 import webhook_service_pb2_grpc as pb_grpc
from recorrido.actions.v1.events import (
    WebhookDeleted,
    WebhookPaused,
    WebhookReplayed,
    WebhookResumed,
    WebhookSecretRotated,
)
from services.actions.api import moment
from services.actions.domain.rules import MAX_ID
from services.actions.domain.webhooks import (
    MAX_WEBHOOKS,
    SALT_BYTES,
    ChangeWebhook,
    Keyring,
    RegisterWebhook,
    Webhook,
)
from services.actions.handlers.webhooks import WebhookHandlers
from services.actions.receivers import Receivers
from services.actions.views.outbox import DeliveryLine, Outbox, WebhookLine
from services.foundation import rpc
from services.foundation.errors import RefusedError
from services.foundation.execute import Executed
from services.foundation.rules import Rules

MAX_PAGE = 1_000
DEFAULT_PAGE = 100


class WebhookServicer(pb_grpc.WebhookServiceServicer):
    """`clock` tells the present moment, UTC."""

    def __init__(
        self,
        handlers: WebhookHandlers,
        outbox: Outbox,
        receivers: Receivers,
        keyring: Keyring,
        clock: Callable[[], datetime],
    ) -> None:
        self._handlers = handlers
        self._outbox = outbox
        self._receivers = receivers
        self._keyring = keyring
        self._clock = clock

    async def RegisterWebhook(self, request: pb.RegisterWebhookRequest, _context: Any) -> pb.RegisterWebhookResponse:  # noqa: N802
        command = RegisterWebhook(
            url=request.url,
            event_types=tuple(request.event_types),
            description=request.description,
            actor=request.actor,
            request_id=request.request_id,
            key_id=self._keyring.first,
            salt=secrets.token_hex(SALT_BYTES),
            occurred_at=self._clock(),
        )
        await self._receivers.check(command.url)
        # Who asks again for the last one is not one too many.
        others = [each for each in await self._outbox.webhooks() if each.webhook_id != command.webhook_id]
        if len(others) >= MAX_WEBHOOKS:
            raise RefusedError("TOO_MANY_WEBHOOKS", f"there are {MAX_WEBHOOKS} already")
        done = await self._handlers.execute(command.webhook_id, command, rpc.metadata())
        registered = done.state.requests[command.request_id]
        webhook = pb.Webhook(
            webhook_id=command.webhook_id,
            url=command.url,
            event_types=command.event_types,
            description=command.description,
            state=pb.WEBHOOK_STATE_PAUSED if done.state.paused else pb.WEBHOOK_STATE_ACTIVE,
            registered_by=command.actor,
            key_id=done.state.secret.key_id if done.state.secret else "",
        )
        if registered.occurred_at is not None:
            webhook.registered_at.FromDatetime(registered.occurred_at)
        return pb.RegisterWebhookResponse(webhook=webhook, secret=self._told(done))

    async def ListWebhooks(self, _request: pb.ListWebhooksRequest, _context: Any) -> pb.ListWebhooksResponse:  # noqa: N802
        lines = await self._outbox.webhooks()
        key_ids = await self._handlers.key_ids([line.webhook_id for line in lines])
        return pb.ListWebhooksResponse(webhooks=map(_webhook, lines, key_ids))

    async def PauseWebhook(self, request: pb.PauseWebhookRequest, _context: Any) -> pb.PauseWebhookResponse:  # noqa: N802
        await self._change(WebhookPaused, request)
        return pb.PauseWebhookResponse()

    async def ResumeWebhook(self, request: pb.ResumeWebhookRequest, _context: Any) -> pb.ResumeWebhookResponse:  # noqa: N802
        await self._change(WebhookResumed, request)
        return pb.ResumeWebhookResponse()

    async def DeleteWebhook(self, request: pb.DeleteWebhookRequest, _context: Any) -> pb.DeleteWebhookResponse:  # noqa: N802
        await self._change(WebhookDeleted, request)
        return pb.DeleteWebhookResponse()

    async def RotateWebhookSecret(  # noqa: N802
        self, request: pb.RotateWebhookSecretRequest, _context: Any
    ) -> pb.RotateWebhookSecretResponse:
        made_of = {"key_id": self._keyring.first, "salt": secrets.token_hex(SALT_BYTES)}
        done = await self._change(WebhookSecretRotated, request, **made_of)
        return pb.RotateWebhookSecretResponse(secret=self._told(done))

    def _told(self, done: Executed[Webhook]) -> str:
        """Return the secret that was made now; empty where the request only repeats another."""
        made_of = done.state.secret if done.events else None
        return self._keyring.secret(made_of) if made_of else ""

    async def ReplayWebhook(self, request: pb.ReplayWebhookRequest, _context: Any) -> pb.ReplayWebhookResponse:  # noqa: N802
        more = {"recorded_since": moment(request, "recorded_since"), "delivered_too": request.delivered_too}
        await self._change(WebhookReplayed, request, more=more)
        return pb.ReplayWebhookResponse()

    async def _change(self, changed: type[Any], request: Any, **fields: Any) -> Executed[Webhook]:
        command = ChangeWebhook(
            changed=changed,
            webhook_id=request.webhook_id,
            actor=request.actor,
            reason=request.reason,
            request_id=request.request_id,
            occurred_at=self._clock(),
            **fields,
        )
        return await self._handlers.execute(command.webhook_id, command, rpc.metadata())

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, _context: Any) -> pb.ListDeliveriesResponse:  # noqa: N802
        rules = Rules()
        rules.text("webhook_id", request.webhook_id, MAX_ID, required=True)
        size = rules.size("page_size", request.page_size, default=DEFAULT_PAGE, most=MAX_PAGE)
        rules.require(request.before >= 0, "before", "not negative")
        rules.require(request.state in pb.DeliveryState.values(), "state", "one of the known values")
        rules.enforce()
        state = pb.DeliveryState.Name(request.state).removeprefix("DELIVERY_STATE_") if request.state else ""
        found = await self._outbox.deliveries(request.webhook_id, state, request.before, size + 1)
        return pb.ListDeliveriesResponse(
            deliveries=map(_delivery, found[:size]),
            next_before=found[size - 1].position if len(found) > size else 0,
        )


def _webhook(line: WebhookLine, key_id: str) -> pb.Webhook:
    return pb.Webhook(
        webhook_id=line.webhook_id,
        url=line.url,
        event_types=line.event_types,
        description=line.description,
        state=pb.WEBHOOK_STATE_PAUSED if line.paused else pb.WEBHOOK_STATE_ACTIVE,
        registered_at=rpc.timestamp(line.registered_at),
        registered_by=line.registered_by,
        pending=line.pending,
        abandoned=line.abandoned,
        key_id=key_id,
    )


def _delivery(line: DeliveryLine) -> pb.Delivery:
    return pb.Delivery(
        delivery_id=line.delivery_id,
        event_id=line.event_id,
        event_type=line.event_type,
        position=line.position,
        state=pb.DeliveryState.Value(f"DELIVERY_STATE_{line.state}"),
        attempts=line.attempts,
        next_at=rpc.timestamp(line.next_at),
        last_status=line.last_status,
        last_error=line.last_error,
        delivered_at=rpc.timestamp(line.delivered_at),
    )
