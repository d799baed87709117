"""Who is behind a device, a card or an anonymous id: `identity link|unlink|show`."""

import hashlib
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from recorrido.ingest.v1 import identity_service_pb2 as pb
from recorrido.ingest.v1.identity_pb2 import Identity, IdentityKind
from recorrido.ingest.v1.identity_service_pb2_grpc import IdentityServiceStub
from services.cli import show
from services.cli.clients import DEADLINE_S, Addresses, channel
from services.cli.options import Actor, AsOf, Json, RequestId, run

app = typer.Typer(
    help="Names under which a customer is seen: devices, cards, hashed e-mail addresses, anonymous ids.",
    no_args_is_help=True,
)


class Kind(StrEnum):
    ANONYMOUS = "anonymous"
    EMAIL = "email"
    LOYALTY = "loyalty"
    DEVICE = "device"
    OTHER = "other"


_KINDS = {
    Kind.ANONYMOUS: IdentityKind.IDENTITY_KIND_ANONYMOUS_ID,
    Kind.EMAIL: IdentityKind.IDENTITY_KIND_EMAIL_HASH,
    Kind.LOYALTY: IdentityKind.IDENTITY_KIND_LOYALTY_CARD,
    Kind.DEVICE: IdentityKind.IDENTITY_KIND_DEVICE,
    Kind.OTHER: IdentityKind.IDENTITY_KIND_OTHER,
}

KindOf = Annotated[Kind, typer.Argument(metavar="KIND", help=f"One of {', '.join(Kind)}.")]
Value = Annotated[
    str, typer.Argument(metavar="VALUE", help="Its id or number; an e-mail address is hashed before it is sent.")
]
Customer = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's own id.")]


def identity(kind: Kind, value: str) -> Identity:
    """Return an identity. Of an e-mail address nothing but its hash leaves this machine."""
    if kind is Kind.EMAIL and "@" in value:
        value = hashlib.sha256(value.strip().lower().encode()).hexdigest()
    return Identity(kind=_KINDS[kind], value=value)


@app.command()
def link(
    kind: KindOf,
    value: Value,
    customer_id: Customer,
    *,
    actor: Actor,
    request_id: RequestId,
    as_json: Json = False,
) -> None:
    """Say whose an identity is: from now on, with all that it ever did."""
    request = pb.LinkIdentityRequest(
        identity=identity(kind, value), customer_id=customer_id, actor=actor, request_id=request_id
    )
    run(_change("LinkIdentity", request, _linked, as_json=as_json))


def _linked(done: pb.LinkIdentityResponse) -> str:
    # A repeated request changes nothing, also where its link was removed since.
    return f"is {done.customer_id}'s" if done.customer_id else "is nobody's any more: the link was removed since"


async def _change(call: str, request: Any, told: Callable[[Any], str], *, as_json: bool) -> None:
    async with channel("ingest", Addresses.configured().ingest) as opened:
        done = await getattr(IdentityServiceStub(opened), call)(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(done)
    else:
        show.console().print(show.plain(f"{done.identity_customer_id} {told(done)}"))


@app.command()
def unlink(
    kind: KindOf,
    value: Value,
    customer_id: Customer,
    *,
    actor: Actor,
    request_id: RequestId,
    as_json: Json = False,
) -> None:
    """Say that an identity is not, or no longer, a customer's: both histories are again as they were."""
    request = pb.UnlinkIdentityRequest(
        identity=identity(kind, value), customer_id=customer_id, actor=actor, request_id=request_id
    )
    run(_change("UnlinkIdentity", request, lambda _: f"is not {customer_id}'s any more", as_json=as_json))


@app.command("show")
def show_identities(customer_id: Customer, *, as_of: AsOf = None, as_json: Json = False) -> None:
    """Show the identities of a customer: those of all times, or those of one time."""
    run(_show(pb.ListIdentitiesRequest(customer_id=customer_id, as_of=as_of), as_json=as_json))


async def _show(request: pb.ListIdentitiesRequest, *, as_json: bool) -> None:
    async with channel("ingest", Addresses.configured().ingest) as opened:
        found = await IdentityServiceStub(opened).ListIdentities(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    if not found.identities:
        show.console().print(show.plain(f"{request.customer_id} has no identities"))
        return
    lines = show.table("identity~", "linked (UTC)", "by~", "unlinked (UTC)", "by~")
    for each in found.identities:
        lines.add_row(
            show.plain(each.identity_customer_id),
            show.when(each.linked_at),
            show.plain(each.linked_by),
            show.when(each.unlinked_at),
            show.plain(each.unlinked_by),
        )
    show.console().print(show.filled(lines))
