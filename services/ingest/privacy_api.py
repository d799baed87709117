"""PrivacyService: protobuf to domain and back."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

from recorrido.ingest.v1 import privacy_service_pb2 as pb
from recorrido.ingest.v1 import privacy_service_pb2_grpc
from recorrido.ingest.v1.events import CustomerErased
from services.foundation.errors import NotFoundError
from services.foundation.eventstore import Blank, EventStore
from services.ingest.erasure import Erasures
from services.ingest.holdings import Holdings
from services.ingest.privacy import canonical, check_customer, cloud_event, is_theirs, no_receipt, receipt_id_of


class PrivacyServicer(privacy_service_pb2_grpc.PrivacyServiceServicer):
    """Hands out what is held about a customer, and erases it."""

    def __init__(self, store: EventStore, holdings: Holdings, erasures: Erasures) -> None:
        self._store = store
        self._holdings = holdings
        self._erasures = erasures

    async def ExportCustomer(  # noqa: N802 - gRPC's name
        self, request: pb.ExportCustomerRequest, _context: Any
    ) -> AsyncIterator[pb.ExportCustomerResponse]:
        check_customer(request.customer_id)
        held = await self._holdings.held(request.customer_id)
        count = 0
        for stream in (*held.streams, *held.shared):
            async for recorded in self._store.read_through(stream):
                if recorded.type_name != Blank.type_name and is_theirs(recorded, held.ids):
                    count += 1
                    yield pb.ExportCustomerResponse(cloud_event=cloud_event(recorded))
        if not count:
            raise NotFoundError("CUSTOMER_UNKNOWN", "nothing is held about this customer")

    async def EraseCustomer(self, request: pb.EraseCustomerRequest, _context: Any) -> pb.EraseCustomerResponse:  # noqa: N802
        check_customer(request.customer_id)
        receipt_id = receipt_id_of(request.customer_id, canonical("request_id", request.request_id))
        await self._erasures.request(request.customer_id, receipt_id, secrets.token_hex(32))
        return pb.EraseCustomerResponse(receipt=_receipt(await self._erasures.wait(receipt_id)))

    async def GetErasure(self, request: pb.GetErasureRequest, _context: Any) -> pb.GetErasureResponse:  # noqa: N802
        receipt_id = canonical("receipt_id", request.receipt_id)
        erased = await self._erasures.receipt(receipt_id)
        if erased is None:
            raise no_receipt(receipt_id)
        return pb.GetErasureResponse(receipt=_receipt(erased))


def _receipt(erased: CustomerErased) -> pb.ErasureReceipt:
    return pb.ErasureReceipt(
        receipt_id=erased.receipt_id,
        interactions=erased.interactions,
        analyses=erased.analyses,
        signals=erased.signals,
        actions=erased.actions,
        identities=erased.identities,
        rejections=erased.rejections,
        events=erased.events,
    )
