"""What is asked of the node itself: gossip, server features, scavenges, and a clear answer to what we do not do."""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

import grpc
from kurrentdbclient.protos.v1 import gossip_pb2, gossip_pb2_grpc, shared_pb2

from infra.eventstore import errors, messages
from infra.eventstore.scavenge import Scavenger

Context = grpc.aio.ServicerContext[Any, Any]

# The KurrentDB release whose client protocol this node follows; clients choose their calls by it.
SERVER_VERSION: Final = "26.1.0"


class Gossip(gossip_pb2_grpc.GossipServicer):
    """A cluster of one: this node leads it."""

    def __init__(self, host: str, port: int) -> None:
        self._endpoint = gossip_pb2.EndPoint(address=host, port=port)
        self._instance = shared_pb2.UUID(string=str(uuid.uuid4()))

    async def Read(self, request: shared_pb2.Empty, context: Context) -> gossip_pb2.ClusterInfo:  # noqa: N802
        del request, context
        member = gossip_pb2.MemberInfo(
            instance_id=self._instance,
            time_stamp=time.time_ns() // 100,
            state=gossip_pb2.MemberInfo.Leader,
            is_alive=True,
            http_end_point=self._endpoint,
        )
        return gossip_pb2.ClusterInfo(members=[member])


def server_features(methods: Sequence[tuple[str, str, Sequence[str]]]) -> grpc.GenericRpcHandler:
    """The ServerFeatures service: (service, method, features) of everything that clients may choose to call."""
    supported = messages.SupportedMethods(
        event_store_server_version=SERVER_VERSION,
        methods=[
            {"service_name": service.lower(), "method_name": name.lower(), "features": features}
            for service, name, features in methods
        ],
    )

    async def get_supported_methods(request: bytes, context: Context) -> Any:
        del request, context
        return supported

    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        get_supported_methods, response_serializer=messages.SupportedMethods.SerializeToString
    )
    service = f"{messages.FEATURES_PACKAGE}.ServerFeatures"
    return grpc.method_handlers_generic_handler(service, {"GetSupportedMethods": handler})


def operations(scavenger: Scavenger) -> grpc.GenericRpcHandler:
    """The Operations service, as far as it is about scavenges; the rest of it is unimplemented."""

    async def start(request: Any, context: Context) -> Any:
        del request, context
        if scavenger.running:
            return messages.ScavengeResp(scavenge_id=scavenger.id, scavenge_result=messages.SCAVENGE_IN_PROGRESS)
        scavenger.start()
        return messages.ScavengeResp(scavenge_id=scavenger.id, scavenge_result=messages.SCAVENGE_STARTED)

    async def stop(request: Any, context: Context) -> Any:
        if not scavenger.running or request.options.scavenge_id != scavenger.id:
            await errors.abort(context, errors.scavenge_not_found(request.options.scavenge_id))
        await scavenger.stop()
        return messages.ScavengeResp(scavenge_id=scavenger.id, scavenge_result=messages.SCAVENGE_STOPPED)

    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=request.FromString,
            response_serializer=messages.ScavengeResp.SerializeToString,
        )
        for name, method, request in (
            ("StartScavenge", start, messages.StartScavengeReq),
            ("StopScavenge", stop, messages.StopScavengeReq),
        )
    }
    return grpc.method_handlers_generic_handler(f"{messages.OPERATIONS_PACKAGE}.Operations", handlers)


class Unimplemented(grpc.GenericRpcHandler):
    """Answers every call that nobody else took, and says so in words."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        method = handler_call_details.method

        async def refuse(requests: Any, context: Context) -> None:
            del requests
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"{method} is not implemented by this single-node event store; a KurrentDB server has it",
            )

        return grpc.stream_stream_rpc_method_handler(refuse)
