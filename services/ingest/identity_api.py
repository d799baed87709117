"""IdentityService: protobuf to domain and back."""

from datetime import datetime
from typing import Any

from recorrido.ingest.v1 import identity_service_pb2 as pb
from recorrido.ingest.v1 import identity_service_pb2_grpc
from recorrido.ingest.v1.events import Identity
from services.foundation import rpc
from services.foundation.execute import Executor, Intent
from services.foundation.rules import Rules
from services.ingest.holdings import Holdings, LinkRow
from services.ingest.identity import Command, Link, LinkIdentity, UnlinkIdentity, customer_id_of, customer_violations


class IdentityServicer(identity_service_pb2_grpc.IdentityServiceServicer):
    """Links, unlinks and lists the identities of customers."""

    def __init__(self, executor: Executor[Link], holdings: Holdings) -> None:
        self._executor = executor
        self._holdings = holdings

    async def LinkIdentity(self, request: pb.LinkIdentityRequest, _context: Any) -> pb.LinkIdentityResponse:  # noqa: N802 - gRPC's name
        command = LinkIdentity(**_fields(request))
        state = await self._execute(command)
        return pb.LinkIdentityResponse(
            identity_customer_id=customer_id_of(command.identity), customer_id=state.customer_id
        )

    async def UnlinkIdentity(self, request: pb.UnlinkIdentityRequest, _context: Any) -> pb.UnlinkIdentityResponse:  # noqa: N802
        command = UnlinkIdentity(**_fields(request))
        await self._execute(command)
        return pb.UnlinkIdentityResponse(identity_customer_id=customer_id_of(command.identity))

    async def ListIdentities(self, request: pb.ListIdentitiesRequest, _context: Any) -> pb.ListIdentitiesResponse:  # noqa: N802
        rules = Rules()
        rules.add(customer_violations(request.customer_id))
        as_of = rules.time(request, "as_of")
        rules.enforce()
        links = await self._holdings.links_of(request.customer_id)
        return pb.ListIdentitiesResponse(identities=[_linked(link) for link in links if _in_force(link, as_of)])

    async def _execute(self, command: Command) -> Link:
        done = await self._executor.execute(Intent(command.stream, command, rpc.metadata()))
        return done.state


def _fields(request: pb.LinkIdentityRequest | pb.UnlinkIdentityRequest) -> dict[str, Any]:
    return {
        "identity": Identity.from_proto(request.identity),
        "customer_id": request.customer_id,
        "actor": request.actor,
        "request_id": request.request_id,
    }


def _in_force(link: LinkRow, as_of: datetime | None) -> bool:
    return as_of is None or (link.linked_at <= as_of and (link.unlinked_at is None or as_of < link.unlinked_at))


def _linked(link: LinkRow) -> pb.LinkedIdentity:
    return pb.LinkedIdentity(
        identity=link.identity.to_proto(),
        identity_customer_id=link.identity_id,
        linked_by=link.linked_by,
        unlinked_by=link.unlinked_by,
        linked_at=rpc.timestamp(link.linked_at),
        unlinked_at=rpc.timestamp(link.unlinked_at),
    )
