"""Triton Inference Server: texts in, analyses out, over its gRPC protocol.

The model `feedback` takes TEXT and answers LANGUAGE, SENTIMENT, SENTIMENT_SCORE, POINT, NEED, CONFIDENCE and ERROR, one
row per text. Its version comes with each answer, the taxonomy's version from the model's configuration.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from opentelemetry.trace import SpanKind
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from recorrido.inference.v1.events import Analysis, Confidence, PointKind, Sentiment
from services.foundation import telemetry
from services.foundation.errors import UnavailableError
from services.inference.domain import MODEL_FAILED, Problem, Result

LOG = structlog.get_logger()

MODEL = "feedback"
#: How long one request may take, its time in Triton's queue included.
TIMEOUT_S = 15.0
#: Text in one request. The time that a text takes grows with its length: this much takes a core up to three seconds.
REQUEST_BYTES = 64 * 1024
PROBE_TIMEOUT_S = 2.0
PROBE_EVERY_S = 2.0
LOAD_TIMEOUT_S = 30.0
_HARMLESS = b"ok"

_NOT_LOADED = "StatusCode.NOT_FOUND"
_LATE = "StatusCode.DEADLINE_EXCEEDED"
#: The server, its model or its queue can't take the request now; another time it may.
_UNAVAILABLE = {
    _NOT_LOADED,
    _LATE,
    *(f"StatusCode.{name}" for name in ("UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED")),
}
_OUTPUTS = ("LANGUAGE", "SENTIMENT", "SENTIMENT_SCORE", "POINT", "NEED", "CONFIDENCE", "ERROR")


class _LateError(Exception):
    """A batch was not answered in time: Triton is down, or the batch too much."""

    def __init__(self, unavailable: UnavailableError) -> None:
        super().__init__(unavailable.message)
        self.unavailable = unavailable


@dataclass(frozen=True, slots=True)
class _Config:
    """What the configuration of one model version says."""

    max_batch_size: int
    instances: int
    taxonomy_version: str


class Triton:
    """A connection to one server, or to a balancer before many."""

    def __init__(self, address: str) -> None:
        self._client = InferenceServerClient(
            address,
            channel_args=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                # A server that was away is found again in a second, not after gRPC's two minutes.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self._configs: dict[str, _Config] = {}
        self._reviving = asyncio.Lock()
        self._request_bytes = REQUEST_BYTES
        self._texts = telemetry.METER.create_counter("recorrido.triton.texts", description="by result")

    async def close(self) -> None:
        await self._client.close()

    async def watch(self, available: Callable[[bool], None]) -> None:
        """Tell for ever whether the model is ready."""
        while True:
            try:
                ready = await self._client.is_model_ready(MODEL, client_timeout=PROBE_TIMEOUT_S)
            except InferenceServerException:
                ready = False
            available(bool(ready))
            await asyncio.sleep(PROBE_EVERY_S)

    async def analyze(self, texts: Sequence[str]) -> list[Result]:
        """Return what each text means, in order; a text that the model cannot cope with comes to a Problem.

        Raises:
            UnavailableError: Triton is down, late, overloaded or has no such model now.
        """
        config = await self._config("")
        results: list[Result] = []
        raw = [text.encode() for text in texts]
        while len(results) < len(raw):
            batch = _head(raw[len(results) :], config.max_batch_size, self._request_bytes)
            try:
                results += await self._analyze_batch(batch)
            except _LateError as error:
                await self._ask_for_less(batch, error)
            else:
                # A server that was slow for a while gets as much as the others again.
                self._request_bytes = min(self._request_bytes * 2, REQUEST_BYTES)
        for result in results:
            self._texts.add(1, {"result": result.reason if isinstance(result, Problem) else "ANALYZED"})
        return results

    async def _ask_for_less(self, batch: Sequence[bytes], late: "_LateError") -> None:
        """Halve what one request may hold, so that whoever tries again does not ask for the same again.

        Raises:
            UnavailableError: it is not for the size: a single text, or any text at all, is not answered in time.
        """
        self._request_bytes = max(sum(map(len, batch)) // 2, 1)
        LOG.warning("a batch took too long, halved", texts=len(batch), next_bytes=self._request_bytes)
        if len(batch) == 1:
            raise late.unavailable
        try:
            await self._infer([_HARMLESS])
        except InferenceServerException as error:
            raise await self._unavailable(error) from error

    async def _analyze_batch(self, texts: Sequence[bytes]) -> list[Result]:
        try:
            answer = await self._infer(texts)
        except InferenceServerException as error:
            if error.status() == _LATE:
                raise _LateError(await self._unavailable(error)) from error
            if error.status() in _UNAVAILABLE:
                raise await self._unavailable(error) from error
            await self._revive()
            if len(texts) == 1:
                LOG.warning("text not analysed", status=error.status(), error=str(error.message())[:200])
                return [Problem(MODEL_FAILED, str(error.message())[:512], MODEL)]
            # One text may have spoilt it for all: the halves tell which.
            middle = len(texts) // 2
            return [*await self._analyze_batch(texts[:middle]), *await self._analyze_batch(texts[middle:])]
        version = answer.get_response().model_version
        return _results(answer, version, (await self._config(version)).taxonomy_version)

    async def _revive(self) -> None:
        """Make sure that the model can analyse anything at all; where it can't, load it anew.

        A Python model is a process. Once that has died (killed for its memory, or by a text) every request fails until
        the model is unloaded and loaded.

        Raises:
            UnavailableError: that was refused or did not help.
        """
        async with self._reviving:
            try:
                # Triton hands requests to the instances in turn, and any of them may be the dead one.
                for _ in range((await self._config("")).instances + 1):
                    await self._infer([_HARMLESS])
            except InferenceServerException as dead:
                LOG.warning("loading the model anew", status=dead.status(), error=str(dead.message())[:200])
                try:
                    await self._client.unload_model(MODEL, client_timeout=LOAD_TIMEOUT_S)
                    await self._client.load_model(MODEL, client_timeout=LOAD_TIMEOUT_S)
                    await self._infer([_HARMLESS])
                except InferenceServerException as error:
                    raise await self._unavailable(error) from error

    async def _unavailable(self, error: InferenceServerException) -> UnavailableError:
        if error.status() == _NOT_LOADED:
            # Whoever unloaded it may have died before loading it; where it is being loaded, this changes nothing.
            with contextlib.suppress(InferenceServerException):
                await self._client.load_model(MODEL, client_timeout=LOAD_TIMEOUT_S)
        return UnavailableError("triton", f"{error.status()}: {str(error.message())[:200]}")

    async def _infer(self, texts: Sequence[bytes]) -> Any:
        tensor = InferInput("TEXT", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=object)[:, None])
        attributes: dict[str, str | int] = {"rpc.system": "grpc", "recorrido.texts": len(texts)}
        with telemetry.span(f"triton infer {MODEL}", SpanKind.CLIENT, attributes=attributes):
            return await self._client.infer(
                MODEL,
                [tensor],
                # Named, because the model does more work for more outputs.
                outputs=[InferRequestedOutput(name) for name in _OUTPUTS],
                client_timeout=TIMEOUT_S,
                headers=telemetry.inject(),
            )

    async def _config(self, version: str) -> _Config:
        """Return the configuration of a version; the empty version is the newest at the time of the first call."""
        if version not in self._configs:
            try:
                response = await self._client.get_model_config(MODEL, version, client_timeout=PROBE_TIMEOUT_S)
            except InferenceServerException as error:
                raise await self._unavailable(error) from error
            parameters = response.config.parameters
            taxonomy = parameters["taxonomy_version"].string_value if "taxonomy_version" in parameters else ""
            instances = sum(group.count * max(1, len(group.gpus)) for group in response.config.instance_group)
            self._configs[version] = _Config(max(1, response.config.max_batch_size), max(1, instances), taxonomy)
        return self._configs[version]


def _head(texts: Sequence[bytes], count: int, size_bytes: int) -> Sequence[bytes]:
    """Return the first of `texts`: at least one, at most `count`, and together at most `size_bytes`."""
    total = 0
    for index, text in enumerate(texts[:count]):
        total += len(text)
        if index and total > size_bytes:
            return texts[:index]
    return texts[:count]


def _results(answer: Any, version: str, taxonomy_version: str) -> list[Result]:
    columns = {name: answer.as_numpy(name) for name in _OUTPUTS}
    rows = zip(*(columns[name].tolist() for name in _OUTPUTS), strict=True)
    results: list[Result] = []
    for (language,), (sentiment,), (score,), (point,), (need,), confidence, (error,) in rows:
        if error:
            reason = error.decode().upper()
            results.append(Problem(reason, f"the model refused the text: {error.decode()}", MODEL, version))
            continue
        results.append(
            Analysis(
                language=language.decode(),
                # A label that this contract does not know is no sentiment or point that could be counted.
                sentiment=Sentiment(f"SENTIMENT_{sentiment.decode().upper()}"),
                sentiment_score=round(score, 4),
                point=PointKind(f"POINT_KIND_{point.decode().upper()}"),
                need_path=need.decode(),
                confidence=Confidence(
                    **dict(
                        zip(("language", "sentiment", "point", "need"), (round(c, 4) for c in confidence), strict=True)
                    )
                ),
                model=MODEL,
                model_version=version,
                taxonomy_version=taxonomy_version,
            )
        )
    return results
