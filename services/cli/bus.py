"""The bus as a client sees it."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote, urlsplit

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError
from rich.text import Text

from services.cli import machine, show
from services.cli.clients import Addresses
from services.cli.failures import CommandError

STREAM = "RECORRIDO"
CONNECT_WITHIN_S = 3.0
#: How long what has come may be held back to be fetched together.
_FETCH_S = 0.5
_BATCH = 256


async def print_events(
    event_type: str | None, limit: int, timeout_s: float | None, *, from_start: bool, as_json: bool
) -> None:
    """Follow the bus and print what comes, at most `limit` events (0: any number) and `timeout_s` (None: for ever).

    `event_type` is a full name; None: all of them.
    """
    url = Addresses.configured().nats_url
    client = await connect(url)
    if not as_json:
        # Else nothing would be seen on a quiet system.
        show.console(stderr=True).print(f"following the bus at {url}, Ctrl-C stops", style="dim")
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await _print(client, event_type, limit, from_start=from_start, as_json=as_json)
    finally:
        await client.close()


async def _print(client: Client, event_type: str | None, limit: int, *, from_start: bool, as_json: bool) -> None:
    shown = 0
    out = show.console()
    async for message in _follow(client, f"{event_type or 'recorrido'}.>", from_start=from_start):
        if as_json:
            sys.stdout.write(json.dumps(envelope(message), ensure_ascii=False) + "\n")
        else:
            out.print(_line(message), no_wrap=True, overflow="ellipsis")
        sys.stdout.flush()
        shown += 1
        if shown == limit:
            return


async def connect(url: str) -> Client:
    """Connect to NATS.

    Raises:
        CommandError: nobody answers there.
    """

    async def ignore(_: Exception) -> None:
        """A lost connection is taken up again; the library would log each try."""

    opening = nats.connect(
        url,
        name="recorrido",
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.25,
        allow_reconnect=True,
        error_cb=ignore,
    )
    try:
        return await asyncio.wait_for(opening, CONNECT_WITHIN_S)
    except (NatsError, OSError, TimeoutError) as error:
        raise CommandError(
            f"NATS does not answer at {url}: "
            + machine.advice("NATS", urlsplit(url).netloc, "tell where it is with RECORRIDO_NATS_URL")
        ) from error


async def messages_held(client: Client) -> int:
    """Return how many events the bus holds; 0 where its stream does not exist yet."""
    try:
        return int((await client.jetstream().stream_info(STREAM)).state.messages)
    except NotFoundError:
        return 0


async def _follow(client: Client, subject: str, *, from_start: bool) -> AsyncIterator[Msg]:
    """Yield each message once and in order, over restarts of the server too."""
    stream = client.jetstream()
    try:
        following = 1 if from_start else (await stream.stream_info(STREAM)).state.last_seq + 1
    except NotFoundError:
        raise CommandError("the bus holds no events yet: the services make its stream when they start") from None
    while True:
        try:
            subscription = await stream.pull_subscribe(
                subject,
                stream=STREAM,
                config=ConsumerConfig(
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=following,
                    ack_policy=AckPolicy.NONE,
                    inactive_threshold=60.0,
                ),
            )
            while True:
                try:
                    messages = await subscription.fetch(_BATCH, timeout=_FETCH_S)
                except TimeoutError:
                    # A consumer is gone when the server was started again; only asking tells.
                    await subscription.consumer_info()
                    continue
                for message in messages:
                    yield message
                    following = message.metadata.sequence.stream + 1
        except (NatsError, TimeoutError, OSError):
            await asyncio.sleep(0.25)


def envelope(message: Msg) -> dict[str, Any]:
    """Return the event and its CloudEvent attributes; `position` and `revision` are where the store holds it.

    What is no event, because somebody published it past the store, is shown as far as it can be.
    """
    headers = message.headers or {}
    return {
        "id": headers.get("ce-id", ""),
        "type": headers.get("ce-type", message.subject),
        "stream": unquote(headers.get("ce-subject", "")),
        "revision": _number(headers.get("recorrido-revision", "")),
        "position": _number(headers.get("recorrido-position", "")),
        "time": headers.get("ce-time", ""),
        "correlationId": headers.get("recorrido-correlation-id", ""),
        "traceparent": headers.get("traceparent", ""),
        "data": _data(message),
    }


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _data(message: Msg) -> Any:
    try:
        return json.loads(message.data)
    except ValueError:
        return message.data.decode(errors="replace")


def _line(message: Msg) -> Text:
    found = envelope(message)
    name = found["type"].rpartition(".")[2]
    text = Text(f"{found['time'][:19]}  ", style="dim")
    text.append(f"{name:<22}", style="bold")
    text.append(f"  {found['stream']}  ", style="cyan")
    text.append_text(show.plain(json.dumps(found["data"], ensure_ascii=False)))
    return text
