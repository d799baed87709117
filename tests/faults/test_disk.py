"""A disk that is full, and one that is slow: what is acknowledged is kept, and it goes on when the disk can."""

import asyncio
import contextlib
import resource
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tests.support.cluster import Cluster, running
from tests.support.front_door import DUPLICATE, RECORDED, of
from tests.support.relays import assert_stream_equals_store, store_of
from tests.support.rpc_errors import info
from tests.support.shim import shimmed
from tests.support.wait import until

MIB = 1024 * 1024
WORDS = "The parcel came late, and nobody told me. " * 40


def _numbered(number: int) -> Any:
    return of(f"customer {number}", number, text=f"{number}: {WORDS}")


async def _record(stub: Any, numbers: range, **options: Any) -> dict[int, pb.RecordResult]:
    request = pb.RecordInteractionsRequest(interactions=map(_numbered, numbers))
    results = (await stub.RecordInteractions(request, timeout=30, **options)).results
    return dict(zip(numbers, results, strict=True))


async def _ids(cluster: Cluster) -> list[str]:
    async with store_of(cluster) as store:
        return [str(event.event_id) async for event in store.read_all(None)]


# -- full ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _small(directory: Path) -> Iterator[Callable[[int], None] | None]:
    """Put a file system of 6 MiB under `directory`, where we may; gives what makes it larger."""
    directory.mkdir(parents=True)

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if not mount(f"size={6 * MIB}"):
        yield None
        return
    try:
        yield lambda size: None if mount(f"remount,size={size}") else pytest.fail("no remount")
    finally:
        # Lazily, for a process may still hold a file of it.
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def _limited(cluster: Cluster, size: int) -> None:
    """Where nothing may be mounted, let no file of the node become larger."""
    _, hard = resource.prlimit(cluster.pid("eventstore"), resource.RLIMIT_FSIZE)
    resource.prlimit(cluster.pid("eventstore"), resource.RLIMIT_FSIZE, (size, hard))


async def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    with _small(tmp_path / "eventstore") as enlarge:
        async with (
            running(["ingest", "relay"], data=tmp_path) as cluster,
            grpc.aio.insecure_channel(cluster.address("ingest")) as channel,
        ):
            stub: Any = IngestServiceStub(channel)
            if enlarge is None:
                _limited(cluster, 3 * MIB)
            acknowledged: dict[int, str] = {}
            refused: dict[int, pb.RecordResult] = {}
            at = 0
            while not refused:
                assert at < 20_000, "the disk is never full"
                results = await _record(stub, range(at, at + 200))
                acknowledged |= {n: r.event_id for n, r in results.items() if r.status == RECORDED}
                refused |= {n: r for n, r in results.items() if r.status != RECORDED}
                at += 200
            assert {r.problem.reason for r in refused.values()} == {"UNAVAILABLE"}
            reasons = "database or disk is full", "disk I/O error"  # the second where only files are limited
            assert all(any(reason in r.problem.message for reason in reasons) for r in refused.values())
            # A single one may still find room.
            with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012
                while True:
                    request = pb.RecordInteractionRequest(interaction=_numbered(at))
                    acknowledged[at] = (await stub.RecordInteraction(request, timeout=30)).result.event_id
                    at += 1
            assert (caught.value.code(), info(caught.value).reason) == (StatusCode.UNAVAILABLE, "UNAVAILABLE")
            # What is there can be read, and is what was acknowledged.
            assert set(acknowledged.values()) <= set(await _ids(cluster))
            assert cluster.restarts("eventstore") == 0

            # Killed on a full disk, too, it loses nothing: it waits for room, or serves what it has.
            if enlarge is not None:
                cluster.kill("eventstore")
                enlarge(64 * MIB)
            else:
                _limited(cluster, resource.RLIM_INFINITY)
            await cluster.until_ready("eventstore")

            async def all_recorded() -> bool:
                answers = [await _record(stub, range(some, min(some + 500, at + 1))) for some in range(0, at + 1, 500)]
                results = {n: r for each in answers for n, r in each.items()}
                return {r.status for r in results.values()} <= {RECORDED, DUPLICATE} and all(
                    results[n].event_id == event_id for n, event_id in acknowledged.items()
                )

            await until(all_recorded, 30, ignoring=(grpc.aio.AioRpcError,))
            assert len(await _ids(cluster)) == at + 1
            await assert_stream_equals_store(cluster, at + 1)


async def test_a_bus_without_room_waits_and_the_relay_catches_up(tmp_path: Path) -> None:
    with _small(tmp_path / "nats") as enlarge:
        if enlarge is None:
            pytest.skip("mounting a small file system takes privileges that we do not have")
        async with (
            running(["ingest", "relay"], data=tmp_path) as cluster,
            grpc.aio.insecure_channel(cluster.address("ingest")) as channel,
        ):
            stub: Any = IngestServiceStub(channel)
            for at in range(0, 4_000, 200):
                results = await _record(stub, range(at, at + 200))
                assert {r.status for r in results.values()} == {RECORDED}, "the front door does not need the bus"

            def told() -> bool:
                return "publishing waits" in (cluster.data / "log/relay.log").read_text()

            await until(told, 20, what="the relay says that it waits")
            assert cluster.restarts("relay") == 0
            enlarge(256 * MIB)
            # It reserves its room when it starts.
            await cluster.kill_and_restart("nats")
            await assert_stream_equals_store(cluster, 4_000)


# -- slow ----------------------------------------------------------------------------------------------------------


async def test_a_slow_disk_makes_it_slow_and_nothing_else(tmp_path: Path) -> None:
    """Every fsync takes 0.4 s: many callers share one, all are answered in time, and nothing is refused."""
    async with (
        shimmed(["ingest", "relay"], ["eventstore"], tmp_path) as (cluster, shim),
        grpc.aio.insecure_channel(cluster.address("ingest")) as channel,
    ):
        stub: Any = IngestServiceStub(channel)
        await _record(stub, range(10))
        shim.slow_disk(400)
        began = time.monotonic()
        calls = [_record(stub, range(at, at + 5)) for at in range(10, 510, 5)]
        results = [r for each in await asyncio.gather(*calls) for r in each.values()]
        took_s = time.monotonic() - began
        assert {r.status for r in results} == {RECORDED}
        assert 0.4 < took_s < 10, "a hundred callers do not wait for a hundred commits"
        shim.slow_disk(0)
        assert len(await _ids(cluster)) == 510
        await assert_stream_equals_store(cluster, 510)


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Any, Any]]:
    async with (
        shimmed(["ingest"], ["eventstore"], tmp_path) as (cluster, shim),
        grpc.aio.insecure_channel(cluster.address("ingest")) as channel,
    ):
        yield cluster, shim, IngestServiceStub(channel)


@pytest.mark.parametrize("dies", ["after the commit", "before it"])
async def test_killed_between_accepting_and_answering_the_client_repeats_and_it_is_recorded_once(
    slow: tuple[Cluster, Any, Any], dies: str
) -> None:
    """Ingest dies while the store is writing: after the commit, which nobody heard of, or with the store before it."""
    cluster, shim, stub = slow
    request = pb.RecordInteractionRequest(interaction=_numbered(1))
    shim.slow_disk(1_000)
    call = asyncio.create_task(_answer(stub, request))
    await until(lambda: shim.syncing, what="the store writes")
    cluster.kill("ingest", SIGSTOP)
    if dies == "after the commit":

        async def there() -> bool:
            return len(await _ids(cluster)) == 1

        await until(there)
    else:
        cluster.kill("eventstore")
    shim.slow_disk(0)
    await cluster.kill_and_restart("ingest", SIGKILL)
    error = await call
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is StatusCode.UNAVAILABLE
    await cluster.until_ready()
    again = await until(lambda: _recorded(stub, request), 20)
    if dies == "after the commit":
        assert again.status == DUPLICATE
    assert await _ids(cluster) == [again.event_id]


async def _answer(stub: Any, request: pb.RecordInteractionRequest) -> pb.RecordResult | grpc.aio.AioRpcError:
    try:
        return (await stub.RecordInteraction(request, timeout=30)).result  # type: ignore[no-any-return]
    except grpc.aio.AioRpcError as error:
        return error


async def _recorded(stub: Any, request: pb.RecordInteractionRequest) -> pb.RecordResult | None:
    answer = await _answer(stub, request)
    return None if isinstance(answer, grpc.aio.AioRpcError) else answer
