"""What went wrong, in one line that a person can act on."""

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.cli import machine

CORRELATION_HEADER = "x-correlation-id"


class CommandError(Exception):
    """Ends the command with `exit_code`; the text is all that the person sees."""

    exit_code = 1
    #: The stable reason that a service gave; empty where none did.
    reason = ""


class SettingError(CommandError):
    """A variable of the environment holds what cannot be used; the text names it."""

    exit_code = 2


_TELLS = "'recorrido {}' tells the ids".format
_CUSTOMERS = "customers are called as their sources call them, 'recorrido signals' names some"
#: Where ids stand that a service does not know, by the reason it gives.
_BY_REASON = {
    "ACTION_NOT_FOUND": _TELLS("actions list"),
    "CUSTOMER_UNKNOWN": _CUSTOMERS,
    "INTERACTION_UNKNOWN": _CUSTOMERS,
    "JOURNEY_MAP_UNKNOWN": _TELLS("map list"),
    "MODEL_VERSION_UNKNOWN": _TELLS("models"),
    "NEED_UNKNOWN": _TELLS("taxonomy"),
    "PLAYBOOK_UNKNOWN": _TELLS("playbook list"),
    "REJECTION_UNKNOWN": _TELLS("rejected list"),
    "WEBHOOK_NOT_FOUND": _TELLS("webhook list"),
}
_AS_OF = ("journey", "CUSTOMER_UNKNOWN")
#: The same by the last part of a field that holds one.
_BY_FIELD = {
    **dict.fromkeys(("stage_id", "touchpoint_id", "persona_id", "goal_id"), _TELLS("map show MAP")),
    "interaction_event_id": _TELLS("analyses CUSTOMER"),
}


def _where(reason: str, fields: list[str]) -> str:
    """Return where to find ids that are known, to end a message with; nothing where none is asked for."""
    told = [_BY_REASON.get(reason, ""), *(_BY_FIELD.get(field.rpartition(".")[2], "") for field in fields)]
    return next((f"; {each}" for each in told if each), "")


def info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Return why a service refused, empty where it did not tell."""
    found = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    any(detail.Unpack(found) for detail in (status.details if status else ()))
    return found


def explain(error: grpc.aio.AioRpcError, service: str, address: str) -> str:
    """Return a line with the reason, the broken rules and, where nobody answered, the address and what to do."""
    status, why = rpc_status.from_call(error), info(error)
    reason, part = why.reason, why.metadata.get("part", "")
    violations: list[error_details_pb2.BadRequest.FieldViolation] = []
    for detail in status.details if status else ():
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request):
            violations = list(request.field_violations)
    if reason == "UNAVAILABLE" and part not in {"", service}:
        detail = str(error.details()).removeprefix(f"{part}: ")
        return f"{service} cannot answer, as {part} does not answer it: {machine.advice(part, address, '', detail)}"
    if reason:
        told = "; ".join(f"{each.field}: {each.description}" for each in violations) or error.details()
        where = "" if "near" in why.metadata else _where(reason, [each.field for each in violations])
        # Only journey is asked as of a time.
        as_of = "; --as-of is about when something was recorded" if where and (service, reason) == _AS_OF else ""
        return f"{service}: {reason}: {told}{where}{as_of}"
    if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        in_time = " in time" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else ""
        elsewhere = f"tell where they are with RECORRIDO_{service.upper()}_ADDRESS"
        return f"{service} does not answer{in_time} at {address}: {machine.advice(service, address, elsewhere)}"
    text = f"{service}: {error.code().name}: {error.details()}"
    correlation = dict(error.trailing_metadata() or ()).get(CORRELATION_HEADER)
    return f"{text} (correlation id {correlation})" if correlation else text
