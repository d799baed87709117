"""What a client asks a node about itself: gossip, server features, and a clear answer to what we do not do."""

import time
import uuid
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from kurrentdbclient.protos.v1 import gossip_pb2, gossip_pb2_grpc, shared_pb2

Context = grpc.aio.ServicerContext[Any, Any]

# The KurrentDB release whose client protocol this node follows; clients choose their calls by it.
SERVER_VERSION: Final = "26.1.0"

_FEATURES: Final = "event_store.client.server_features"


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


def server_features(methods: list[tuple[str, str, list[str]]]) -> grpc.GenericRpcHandler:
    """The ServerFeatures service, answering with (service, method, features) of everything this node serves.

    The Python client's package has no messages for it, so they are declared here.
    """
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="server_features.proto", package=_FEATURES, syntax="proto3")
    text, repeated = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    method = file.message_type.add(name="SupportedMethod")
    method.field.add(name="method_name", number=1, type=text)
    method.field.add(name="service_name", number=2, type=text)
    method.field.add(name="features", number=3, type=text, label=repeated)
    answer = file.message_type.add(name="SupportedMethods")
    answer.field.add(name="event_store_server_version", number=1, type=text)
    answer.field.add(
        name="methods",
        number=2,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
        type_name=f".{_FEATURES}.SupportedMethod",
        label=repeated,
    )
    pool.Add(file)
    message_class = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_FEATURES}.SupportedMethods"))
    supported = message_class(
        event_store_server_version=SERVER_VERSION,
        methods=[
            {"service_name": service.lower(), "method_name": name.lower(), "features": features}
            for service, name, features in methods
        ],
    )

    async def get_supported_methods(request: shared_pb2.Empty, context: Context) -> Any:
        del request, context
        return supported

    handler = grpc.unary_unary_rpc_method_handler(
        get_supported_methods,
        request_deserializer=shared_pb2.Empty.FromString,
        response_serializer=message_class.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(f"{_FEATURES}.ServerFeatures", {"GetSupportedMethods": handler})


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
