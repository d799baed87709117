"""What is held about a customer: `export`, `erase`; and `scavenge`, which takes what was erased off the disk."""

import json
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO
from urllib.parse import urlsplit

import grpc
import typer
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from recorrido.ingest.v1 import privacy_service_pb2 as pb
from recorrido.ingest.v1.privacy_service_pb2_grpc import PrivacyServiceStub
from services.cli import machine, naming, privatefile, show
from services.cli.clients import DEADLINE_S, Addresses, channel
from services.cli.failures import CommandError, explain
from services.cli.options import Json, run

if TYPE_CHECKING:
    from recorrido.ingest.v1.privacy_service_pb2_grpc import PrivacyServiceAsyncStub

#: An export is as long as a history; an erasure waits for relay and bus, should they be away.
WITHIN_S = 3600.0

Customer = Annotated[
    str, typer.Argument(metavar="CUSTOMER", help="The customer's id, or an identity such as device:7.")
]


# -- export --------------------------------------------------------------------------------------------------------


def export(
    customer_id: Customer,
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write there, readable by you alone; replaces the file.")
    ] = None,
) -> None:
    """Print everything that is held of a customer, one CloudEvent in JSON per line."""
    run(_export(customer_id, out))


async def _export(customer_id: str, out: Path | None) -> None:
    if out is None:
        await _write(customer_id, sys.stdout)
        return
    with privatefile.written(out) as file:
        count = await _write(customer_id, file)
    show.console(stderr=True).print(f"{show.count(count)} events of {customer_id} are in {out}")


async def _write(customer_id: str, file: TextIO) -> int:
    count, addresses = 0, Addresses.configured()
    async with naming.or_alike(addresses, customer_id), channel("ingest", addresses.ingest) as opened:
        call = PrivacyServiceStub(opened).ExportCustomer(
            pb.ExportCustomerRequest(customer_id=customer_id), timeout=WITHIN_S
        )
        async for each in call:
            file.write(each.cloud_event + "\n")
            count += 1
    return count


# -- erase ---------------------------------------------------------------------------------------------------------


def erase(
    customer_id: Customer,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    request_id: Annotated[
        str,
        typer.Option(
            default_factory=lambda: str(uuid.uuid4()),
            show_default=False,
            help="A random UUID. Repeating one erases nothing that came after its receipt.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Erase everything that is held of a customer, and print the receipt. Statistics stay, without the customer."""
    if not yes:
        typer.confirm(
            f"Erase everything that is held of {customer_id}? This cannot be undone.", abort=True, err=as_json
        )
    run(_erase(pb.EraseCustomerRequest(customer_id=customer_id, request_id=request_id), as_json=as_json))


async def _erase(request: pb.EraseCustomerRequest, *, as_json: bool) -> None:
    address = Addresses.configured().ingest
    async with channel("ingest", address) as opened:
        try:
            done = await _receipt(PrivacyServiceStub(opened), request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise
            again = f"whether it was taken in is not known; repeat it with --request-id {request.request_id}"
            raise CommandError(f"{explain(error, 'ingest', address)}; {again}") from error
    if as_json:
        show.print_json(done)
        return
    receipt = done.receipt
    out = show.console()
    if not receipt.events:
        out.print(
            f"Nothing was held of {request.customer_id!r}, so nothing was erased: where something should be, look"
            " whether this is the id that the sources use.",
            soft_wrap=True,
        )
        out.print(f"Receipt {receipt.receipt_id} tells that it was asked for.")
        return
    out.print(f"Receipt {receipt.receipt_id}")
    lines = show.table("", "#")
    for title in ("interactions", "analyses", "signals", "actions", "identities", "rejections", "events"):
        lines.add_row(title if title != "events" else "events in all", show.count(getattr(receipt, title)))
    out.print(lines)
    out.print("Gone for every reader; 'recorrido scavenge' takes it off the event store's disk too.")


async def _receipt(
    service: "PrivacyServiceAsyncStub", request: pb.EraseCustomerRequest, within_s: float = WITHIN_S
) -> pb.EraseCustomerResponse:
    """Wait for the receipt. A call waits for half a minute at most; repeating it goes on waiting."""
    until = time.monotonic() + within_s
    while True:
        try:
            return await service.EraseCustomer(request, timeout=min(DEADLINE_S, within_s))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or time.monotonic() > until:
                raise


# -- scavenge ------------------------------------------------------------------------------------------------------


def scavenge(*, as_json: Json = False) -> None:
    """Take what was erased off the event store's disk, and wait until that is done."""
    run(_scavenge(as_json=as_json))


async def _scavenge(*, as_json: bool) -> None:
    uri = Addresses.configured().eventstore_uri
    place = urlsplit(uri)
    if "tls=false" not in place.query.lower():
        raise CommandError("a KurrentDB with TLS is scavenged with its own tools, see docs/privacy.md")
    async with grpc.aio.insecure_channel(place.netloc.rpartition("@")[2]) as opened:
        start: Any = opened.unary_unary("/event_store.client.operations.Operations/StartScavenge")
        try:
            # ScavengeResp of KurrentDB's operations.proto: its first field is the id.
            answer: Any = UnknownFieldSet(Empty.FromString(await start(b"", timeout=10)))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                elsewhere = "tell where it is with RECORRIDO_EVENTSTORE_URI"
                advice = machine.advice("event store", place.netloc, elsewhere)
                raise CommandError(f"the event store does not answer at {uri}: {advice}") from error
            raise CommandError(f"event store at {uri}: {error.code().name}: {error.details()}") from error
    scavenge_id = next(field.data for field in answer if field.field_number == 1).decode()
    facts = await _completed(uri, scavenge_id)
    if facts.get("result") != "Success":
        raise CommandError(f"the scavenge ended as {facts.get('result')}: {facts.get('error', '')}")
    if as_json:
        show.print_json(facts)
        return
    removed, freed = facts.get("eventsRemoved"), facts.get("spaceSaved")
    events = "" if removed is None else f"{show.count(removed)} events removed, "
    show.console().print(f"{events}{show.count(freed or 0)} bytes given back")


async def _completed(uri: str, scavenge_id: str) -> dict[str, Any]:
    """Return what is told of a scavenge when it is completed."""
    # Half a second that every other command would take longer.
    from kurrentdbclient import AsyncKurrentDBClient  # noqa: PLC0415
    from kurrentdbclient.exceptions import KurrentDBClientError  # noqa: PLC0415

    client = AsyncKurrentDBClient(uri=uri)
    try:
        await client.connect()
        async with await client.subscribe_to_stream(f"$scavenges-{scavenge_id}", timeout=WITHIN_S) as events:
            async for event in events:
                if event.type == "$scavengeCompleted":
                    facts: dict[str, Any] = json.loads(event.data)
                    return facts
    except KurrentDBClientError as error:
        raise CommandError(f"event store at {uri}: the scavenge goes on, but is not told of: {error!r}") from error
    finally:
        await client.close()
    raise CommandError(f"event store at {uri}: it ended before the scavenge was completed")
