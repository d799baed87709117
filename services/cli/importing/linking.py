"""Tells who is behind an anonymous id, a device or a card: links as ingest's IdentityService takes them."""

import asyncio
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Self

import grpc

from recorrido.ingest.v1.identity_pb2 import Identity
from recorrido.ingest.v1.identity_service_pb2 import LinkIdentityRequest
from services.cli.clients import DEADLINE_S
from services.cli.failures import explain
from services.cli.importing.recording import ACTOR, PATIENCE_S, Pause, patiently
from services.cli.importing.rows import IdentityLink

if TYPE_CHECKING:
    from recorrido.ingest.v1.identity_service_pb2_grpc import IdentityServiceAsyncStub

_IN_FLIGHT = 16
#: A visitor is told to be the same customer again and again; what is remembered need not be asked.
_REMEMBERED = 100_000

_REFUSED = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
}


class Linker:
    """Makes links, a few at a time; as a context manager it waits for the last at its end."""

    def __init__(self, service: "IdentityServiceAsyncStub", address: str, patience_s: float = PATIENCE_S) -> None:
        self._service = service
        self._address = address
        self._patience_s = patience_s
        self._free = asyncio.Semaphore(_IN_FLIGHT)
        self._made: dict[IdentityLink, None] = {}
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._group.__aexit__(*error)  # type: ignore[arg-type]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def link(self, links: list[IdentityLink], settled: Callable[[str], None]) -> None:
        """Begin to make the links of one row; `settled` is told why one was refused, or nothing."""
        await self._free.acquire()
        self._group.create_task(self._link(links, settled))

    async def _link(self, links: list[IdentityLink], settled: Callable[[str], None]) -> None:
        problem = ""
        try:
            for each in links:
                if each not in self._made:
                    problem = await self._one(each) or problem
        finally:
            self._free.release()
        settled(problem)

    async def _one(self, link: IdentityLink) -> str:
        request = LinkIdentityRequest(
            identity=Identity(kind=link.kind, value=link.value),
            customer_id=link.customer_id,
            actor=ACTOR,
            # The same link told twice is one.
            request_id=sha256(f"{link.kind}\x1f{link.value}\x1f{link.customer_id}".encode()).hexdigest(),
        )
        try:
            await patiently(partial(self._service.LinkIdentity, request, timeout=DEADLINE_S), Pause(self._patience_s))
        except grpc.aio.AioRpcError as error:
            if error.code() not in _REFUSED:
                raise
            return explain(error, "ingest", self._address)
        if len(self._made) >= _REMEMBERED:
            del self._made[next(iter(self._made))]
        self._made[link] = None
        return ""
