"""What store and bus really hold, read with their own clients."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import nats
from kurrentdbclient import AsyncKurrentDBClient
from nats.js import api


@dataclass(frozen=True)
class Message:
    event_id: str
    type_name: str
    position: int


async def stored(uri: str) -> list[Any]:
    """Return every public event of the store, in its order."""
    client = AsyncKurrentDBClient(uri=uri)
    await client.connect()
    try:
        return [event async for event in await client.read_all(filter_include=[r"^recorrido\..*"])]
    finally:
        await client.close()


async def published(url: str, stream: str = "RECORRIDO") -> list[Message]:
    """Return every message of the stream, in its order."""
    client = await nats.connect(url)
    try:
        js = client.jetstream()
        total = (await js.stream_info(stream)).state.messages
        subscription = await js.subscribe(
            "", stream=stream, ordered_consumer=True, config=api.ConsumerConfig(deliver_policy=api.DeliverPolicy.ALL)
        )
        messages: list[Message] = []
        while len(messages) < total:
            message = await subscription.next_msg(timeout=10)
            headers = message.headers or {}
            messages.append(Message(headers["ce-id"], headers["ce-type"], int(headers["recorrido-position"])))
        return messages
    finally:
        await client.close()


def count_by_type(events: list[Any]) -> Counter[str]:
    return Counter(getattr(e, "type_name", None) or e.type for e in events)
