"""A caller that is gone without a word, as one whose network is cut, is given up, and what it held is free again."""

import asyncio
import sys
from collections.abc import AsyncIterator
from functools import partial
from signal import SIGSTOP
from typing import Any

import pytest

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1 import ingest_service_pb2_grpc as pb_grpc
from services.foundation import rpc
from tests.support.wait import until

#: Opens a stream, and then neither says nor reads anything.
CALLER = """
import sys, threading
import grpc
from recorrido.ingest.v1 import ingest_service_pb2_grpc as pb_grpc
stub = pb_grpc.IngestServiceStub(grpc.insecure_channel(sys.argv[1]))
def silence():
    threading.Event().wait()
    yield
for answer in stub.StreamInteractions(silence()):
    pass
"""


async def test_a_caller_that_is_frozen_is_given_up_and_one_that_is_silent_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rpc, "SILENCE_MS", 500)
    streams: list[str] = []
    opened = asyncio.Condition()

    class Servicer(pb_grpc.IngestServiceServicer):
        async def StreamInteractions(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
            peer = context.peer()
            async with opened:
                streams.append(peer)
                opened.notify_all()
            try:
                async for _ in requests:
                    yield pb.StreamInteractionsResponse()
            finally:
                streams.remove(peer)

    server = rpc.RpcServer("127.0.0.1:0")
    name = pb.DESCRIPTOR.services_by_name["IngestService"].full_name
    server.register(pb_grpc.add_IngestServiceServicer_to_server, Servicer(), name)  # type: ignore[abstract] # nobody calls the others
    await server.start()
    callers = []
    try:
        for number in (1, 2):
            callers.append(
                await asyncio.create_subprocess_exec(sys.executable, "-c", CALLER, f"127.0.0.1:{server.port}")
            )
            async with asyncio.timeout(30), opened:
                await opened.wait_for(partial(lambda wanted: len(streams) == wanted, number))
        silent, _ = streams
        callers[1].send_signal(SIGSTOP)
        await until(lambda: len(streams) == 1, 30)
        # Who says nothing for longer than that, but lives, is heard.
        await asyncio.sleep(1.5)
        assert streams == [silent]
    finally:
        for caller in callers:
            caller.kill()
            await caller.wait()
        await server.stop(0)
