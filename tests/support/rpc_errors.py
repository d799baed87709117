"""What a failed call tells: its reason and details, and every field with the rule it breaks."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """Return how a call fails that has to."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def detail(error: grpc.aio.AioRpcError, of: type[Any]) -> Any:
    """Return the detail of that type, None where there is none."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no google.rpc.Status with {error.code()}: {error.details()}"
    for each in status.details:
        if each.Is(of.DESCRIPTOR):
            message = of()
            each.Unpack(message)
            return message
    return None


def info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Return the reason of a failure, with its details."""
    return detail(error, error_details_pb2.ErrorInfo)


def violations(error: grpc.aio.AioRpcError) -> list[tuple[str, str]]:
    """Return each field and the rule it breaks; none where the request was well formed."""
    bad_request = detail(error, error_details_pb2.BadRequest)
    return [(v.field, v.description) for v in bad_request.field_violations] if bad_request else []
