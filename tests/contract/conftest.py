"""The event store node that a file of tests has to itself, and clients of it."""

from collections.abc import AsyncIterator, Iterator

import pytest
from kurrentdbclient import AsyncKurrentDBClient

from services.foundation.eventstore import EventStore
from tests.support import eventstore


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with eventstore.connection_string(tmp_path_factory.mktemp("eventstore")) as uri:
        yield uri


@pytest.fixture
async def store(uri: str) -> AsyncIterator[EventStore]:
    store = await EventStore.connect(uri)
    yield store
    await store.close()


@pytest.fixture
async def client(uri: str) -> AsyncIterator[AsyncKurrentDBClient]:
    client = AsyncKurrentDBClient(uri)
    yield client
    await client.close()
