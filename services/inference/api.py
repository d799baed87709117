"""proto ⇄ domain of the inference service."""

from typing import Any

from recorrido.inference.v1 import inference_service_pb2 as pb
from recorrido.inference.v1 import inference_service_pb2_grpc
from services.foundation.errors import InvalidError, Violation
from services.inference.domain import Problem, Result
from services.inference.handlers import Handlers

MAX_TEXTS = 1000


class InferenceServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Analyses texts on demand."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    async def Analyze(self, request: pb.AnalyzeRequest, _context: Any) -> pb.AnalyzeResponse:  # noqa: N802 - gRPC's name
        count = len(request.texts)
        if not 1 <= count <= MAX_TEXTS:
            raise InvalidError([Violation("texts", f"1 to {MAX_TEXTS}, has {count}")])
        results = await self._handlers.analyze(request.texts)
        return pb.AnalyzeResponse(results=map(_result, results))


def _result(result: Result) -> pb.AnalyzeResult:
    if isinstance(result, Problem):
        return pb.AnalyzeResult(problem=pb.AnalyzeProblem(reason=result.reason, message=result.message))
    return pb.AnalyzeResult(analysis=result.to_proto())
