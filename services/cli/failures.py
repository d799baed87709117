"""What went wrong, in one line that a person can act on."""

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

CORRELATION_HEADER = "x-correlation-id"


class CommandError(Exception):
    """Ends the command with `exit_code`; the text is all that the person sees."""

    exit_code = 1


class SettingError(CommandError):
    """A variable of the environment holds what cannot be used; the text names it."""

    exit_code = 2


def explain(error: grpc.aio.AioRpcError, service: str, address: str) -> str:
    """Return a line with the reason, the broken rules and, where nobody answered, the address and what to do."""
    status = rpc_status.from_call(error)
    reason = ""
    violations: list[str] = []
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request):
            violations = [f"{each.field}: {each.description}" for each in request.field_violations]
    if reason:
        return f"{service}: {reason}: {'; '.join(violations) or error.details()}"
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return (
            f"{service} does not answer at {address}: start the services with 'recorrido run', "
            f"or tell where they are with RECORRIDO_{service.upper()}_ADDRESS"
        )
    text = f"{service}: {error.code().name}: {error.details()}"
    correlation = dict(error.trailing_metadata() or ()).get(CORRELATION_HEADER)
    return f"{text} (correlation id {correlation})" if correlation else text
