"""Requests are read to their end before they are answered.

gRPC answers a call as soon as its one message is there, and when the answer is complete before the client has closed
its side of the HTTP/2 stream, gRPC's C core resets the stream (RST_STREAM with NO_ERROR, RFC 9113, section 8.1).
Clients that close their side in a frame of its own (Rust's hyper, on which also the Node.js client reads) may take that
for a failure: UNAVAILABLE, by chance, when the machine is busy. KurrentDB, as every server on ASP.NET Core, waits for
the end of the request; so does this node.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]


class Registrar:
    """Takes what generated code registers in place of the server, and gives it each request when it has ended."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(tuple(map(_Ended, handlers)))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Do nothing: the same methods come as generic handlers, which is all that grpc.aio looks at."""


class _Ended(grpc.GenericRpcHandler):
    def __init__(self, handler: grpc.GenericRpcHandler) -> None:
        self._handler = handler
        self._methods: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if method not in self._methods:
            handler = self._handler.service(handler_call_details)
            if handler is None or handler.request_streaming:
                return handler
            self._methods[method] = _ended(handler)
        return self._methods[method]


def _ended(handler: Any) -> Any:
    """A handler that reads one request as a stream of one, and answers as `handler` does."""

    async def unary(requests: AsyncIterator[Any], context: Context) -> Any:
        return await handler.unary_unary(await _only(requests, context), context)

    async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for response in handler.unary_stream(await _only(requests, context), context):
            yield response

    made = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    return made(
        stream if handler.response_streaming else unary,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


async def _only(requests: AsyncIterator[Any], context: Context) -> Any:
    received = []
    async for request in requests:
        received.append(request)
        if len(received) > 1:
            break
    if len(received) != 1:
        try:
            await context.abort(grpc.StatusCode.INTERNAL, "exactly one request message is expected")
        except grpc.aio.InternalError:
            # The call is over, as gRPC ends one whose message is too large: there is nobody to tell.
            raise asyncio.CancelledError from None
    return received[0]
