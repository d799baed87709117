"""What NATS and the event store must offer: a process that finds less says so in one line."""

import asyncio
import sys
from pathlib import Path

import grpc
import nats
import pytest
from kurrentdbclient.protos.v1 import streams_pb2_grpc

from infra.eventstore.limits import Limits
from infra.eventstore.node import Unimplemented
from infra.eventstore.store import Store
from infra.eventstore.streams_v1 import StreamsV1
from infra.local.cluster import running
from infra.local.parts import ROOT
from infra.local.ports import free
from recorrido.ingest.v1.events import Interaction, InteractionRecorded, Verbatim
from services.foundation.bus import MIN_PAYLOAD_BYTES, Bus
from services.foundation.errors import RefusedError
from services.foundation.events import Pending, derived_id
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.relay.relay import PUBLISHING, Relay, State
from tests.support import eventstore as node
from tests.support.nats import nats_server
from tests.support.relays import append
from tests.support.truth import published
from tests.support.wait import until

MIB = 1024 * 1024


async def relay_output(uri: str, url: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.relay.main"),
        cwd=ROOT,
        env={
            "PYTHONPATH": f"{ROOT}:{ROOT / 'proto/gen'}",
            "RECORRIDO_LISTEN": "127.0.0.1:0",
            "RECORRIDO_EVENTSTORE_URI": uri,
            "RECORRIDO_NATS_URL": url,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, output.decode()


async def test_nats_must_take_messages_as_large_as_events(tmp_path: Path) -> None:
    """Its default of 1 MiB is too small: an event of nearly that and its headers would stop the relay."""
    with node.running(tmp_path / "store") as store:
        async with nats_server(tmp_path / "nats", max_payload=MIB) as url:
            status, output = await relay_output(store.uri, url)
    assert status == 1
    (line,) = [line for line in output.splitlines() if "cannot start" in line]
    assert "max_payload" in line
    assert "1048576" in line
    assert "Traceback" not in output


async def test_the_store_must_append_to_many_streams_at_once(tmp_path: Path) -> None:
    """A KurrentDB before 26.1, as far as this matters: our node without the second version of the protocol."""
    data = tmp_path / "store"
    data.mkdir()
    store = Store.open(data)
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    streams_pb2_grpc.add_StreamsServicer_to_server(StreamsV1(store, Limits()), server)
    server.add_generic_rpc_handlers((Unimplemented(),))
    await server.start()
    with pytest.raises(RefusedError, match="AppendRecords"):
        await asyncio.wait_for(EventStore.connect(f"kurrentdb://127.0.0.1:{port}?tls=false"), 10)
    await server.stop(None)
    await store.close()


async def test_an_event_that_the_bus_cannot_take_is_named_and_waits(tmp_path: Path) -> None:
    """A store that takes larger events than the bus: nothing is left out, and nobody has to guess."""
    data, port = tmp_path / "nats", free().nats
    with node.running(tmp_path / "store", "127.0.0.1:0", "--max-event-bytes", str(4 * MIB)) as running_node:
        store = await EventStore.connect(running_node.uri)
        await append(store, range(7, 10))
        large = InteractionRecorded(
            interaction=Interaction(source="test", interaction_id="large", verbatim=Verbatim(text="x" * 3 * MIB))
        )
        await store.append([StreamAppend("customer-large", ANY, [Pending(large, derived_id("large"))])])
        told: list[bool] = []
        async with nats_server(data, max_payload=MIN_PAYLOAD_BYTES, port=port) as url:
            bus = await Bus.connect(url, name="test")
            publishing = Relay(store, bus)
            relay = asyncio.create_task(publishing.run(able=told.append))

            async def those_before_it() -> bool:
                return told[-1:] == [False] and len(await published(url)) == 3

            async def standing_by() -> bool:
                return publishing.status.state is State.STANDING_BY

            await until(those_before_it)
            # While another one tries it could not do better.
            async with bus.answering(PUBLISHING):
                await until(standing_by)
                assert told[-1] is False
        # Its operator raises the limit; the relay goes on by itself.
        async with nats_server(data, max_payload=8 * MIB, port=port) as url:
            await until(lambda: told[-1], deadline_s=30)
            await append(store, range(10, 12))

            async def complete() -> bool:
                return len(await published(url)) == 6

            await until(complete)
            relay.cancel()
            await asyncio.wait([relay])
            await bus.close()
        await store.close()


# -- limits of the streams -----------------------------------------------------------------------------------------


async def test_the_relay_limits_the_stream_that_is_there(tmp_path: Path) -> None:
    async def limits(environment: dict[str, str]) -> tuple[int, int, int]:
        async with running(["relay"], data=tmp_path, env=environment) as cluster:
            client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
            config = (await client.jetstream().stream_info("RECORRIDO")).config
            dead = (await client.jetstream().stream_info("RECORRIDO_DEAD")).config
            await client.close()
            assert config.allow_atomic, "nothing else changes"
            return config.max_bytes or 0, config.num_replicas or 0, dead.max_bytes or 0

    assert await limits({}) == (-1, 1, -1)
    assert await limits({"RECORRIDO_BUS_MAX_BYTES": "10000000", "RECORRIDO_BUS_REPLICAS": "1"}) == (10_000_000, 1, -1)
    assert await limits({}) == (10_000_000, 1, -1), "what nobody says stays"


async def test_the_oldest_events_make_room(tmp_path: Path) -> None:
    """With a limit the stream ends where the store does, and begins later."""
    async with running(["relay"], data=tmp_path, env={"RECORRIDO_BUS_MAX_BYTES": "200000"}) as cluster:
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        await append(store, range(1_000))
        await store.close()
        url = cluster.environment["RECORRIDO_NATS_URL"]

        async def last() -> bool:
            client = await nats.connect(url)
            state = (await client.jetstream().stream_info("RECORRIDO")).state
            await client.close()
            return state.last_seq == 1_000 and state.first_seq > 1 and state.bytes <= 200_000

        await until(last)
