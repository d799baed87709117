"""Triton Inference Server: texts in, analyses out, over its gRPC protocol.

The model `feedback` takes TEXT and answers LANGUAGE, SENTIMENT, SENTIMENT_SCORE, POINT, NEED, CONFIDENCE and ERROR, one
row per text; where its configuration lists them, also EMOTION, INTENT, EFFORT, URGENCY, MORE_CONFIDENCE, UNSURE,
SENTENCES and CHECK. Its version comes with each answer, the taxonomy's version from the model's configuration.

A model's process that dies, hangs or falls out of step with Triton is found by what it answers, and the model is loaded
anew (docs/model.md tells what was seen).
"""

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import structlog
from opentelemetry.trace import SpanKind
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from recorrido.inference.v1.events import (
    Analysis,
    Aspect,
    Confidence,
    Effort,
    Emotion,
    Intent,
    PointKind,
    Sentence,
    Sentiment,
    Urgency,
)
from services.foundation import telemetry
from services.foundation.errors import NotFoundError, UnavailableError
from services.inference.domain import MODEL_FAILED, Problem, Result

LOG = structlog.get_logger()

MODEL = "feedback"
#: How long one request may take, its time in Triton's queue included.
TIMEOUT_S = 15.0
#: Triton refuses what has waited for ten seconds: what is so long neither answered nor refused is lost in it.
SILENT_S = 15.0
#: Text in one request. The time that a text takes grows with its length: this much takes a core up to three seconds.
REQUEST_BYTES = 64 * 1024
PROBE_TIMEOUT_S = 2.0
PROBE_EVERY_S = 2.0
LOAD_TIMEOUT_S = 30.0
_HARMLESS = b"ok"
_READY = "READY"

_NOT_LOADED = "StatusCode.NOT_FOUND"
_LATE = "StatusCode.DEADLINE_EXCEEDED"
#: Not one of gRPC's: what was answered is the answer to another question.
_OUT_OF_STEP = "OUT_OF_STEP"
#: Triton's words where a model's process did not tell within a second that it lives.
_UNHEALTHY = ("is not healthy", "health mutex")
#: The server, its model or its queue can't take the request now; another time it may.
_UNAVAILABLE = {
    _NOT_LOADED,
    _LATE,
    *(f"StatusCode.{name}" for name in ("UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED")),
}
#: Which aspects the columns of CONFIDENCE and of MORE_CONFIDENCE are about.
_CONFIDENCE = ("language", "sentiment", "point", "need")
_MORE_CONFIDENCE = ("emotion", "intent", "effort", "urgency")
_ASPECTS = (*_CONFIDENCE, *_MORE_CONFIDENCE)
_SURE_ONLY = ("language", "need")
#: An unsure answer with a higher probability is likelier than all others together.
_LIKELIER = 0.5
_OUTPUTS = (
    *(name.upper() for name in _ASPECTS),
    *("SENTIMENT_SCORE", "CONFIDENCE", "MORE_CONFIDENCE", "UNSURE", "SENTENCES", "ERROR", "CHECK"),
)


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
    languages: tuple[str, ...]
    outputs: frozenset[str]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version that Triton knows. `state` is Triton's own word, such as READY."""

    name: str
    version: str
    state: str
    reason: str
    in_service: bool
    taxonomy_version: str
    languages: tuple[str, ...]
    aspects: tuple[Aspect, ...]
    sentences: bool


class Triton:
    """A connection to one server, or to a balancer before many. `version` is in service; empty: the newest there is."""

    def __init__(self, address: str, version: str = "") -> None:
        self._version = version
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
        #: How often the model was loaded anew, so that of many who find the same fault one mends it.
        self._loads = 0
        self._silent = False
        self._request_bytes = REQUEST_BYTES
        self._texts = telemetry.METER.create_counter("recorrido.triton.texts", description="by result")
        self._reloads = telemetry.METER.create_counter("recorrido.triton.reloads", description="by reason")

    async def close(self) -> None:
        await self._client.close()

    async def watch(self, available: Callable[[bool], None]) -> None:
        """Tell for ever whether the model is ready, and answers: Triton calls one ready whose processes hang."""
        while True:
            try:
                ready = await self._client.is_model_ready(MODEL, self._version, client_timeout=PROBE_TIMEOUT_S)
                if ready and self._silent:
                    await self._infer([_HARMLESS], self._version)
            except (InferenceServerException, UnavailableError):
                ready = False
            available(bool(ready))
            await asyncio.sleep(PROBE_EVERY_S)

    async def models(self) -> list[ServedModel]:
        """Return every version that Triton knows, newest first. Raises UnavailableError."""
        try:
            index = await self._client.get_model_repository_index(client_timeout=PROBE_TIMEOUT_S)
        except InferenceServerException as error:
            raise await self._unavailable(error) from error
        known = sorted((m for m in index.models if m.name == MODEL), key=lambda m: _number(m.version), reverse=True)
        ready = [m.version for m in known if m.state == _READY]
        in_service = self._version or next(iter(ready), "")
        served = []
        for each in known:
            config = await self._config(each.version) if each.version in ready else _Config(1, 1, "", (), frozenset())
            served.append(
                ServedModel(
                    name=MODEL,
                    version=each.version,
                    state=each.state,
                    reason=each.reason,
                    in_service=each.version == in_service,
                    taxonomy_version=config.taxonomy_version,
                    languages=config.languages,
                    aspects=tuple(_aspect(name) for name in _ASPECTS if name.upper() in config.outputs),
                    sentences="SENTENCES" in config.outputs,
                )
            )
        return served

    async def require(self, version: str) -> str:
        """Return `version`, or the one in service for an empty one, after making sure that Triton serves it.

        Raises:
            NotFoundError: MODEL_VERSION_UNKNOWN; names those that there are.
            UnavailableError: Triton does not answer, or serves nothing now.
        """
        models = [model for model in await self.models() if model.state == _READY]
        for model in models:
            if model.version == version or (not version and model.in_service):
                return model.version
        if not models or not version:
            raise UnavailableError("triton", "the model in service is not ready")
        served = ", ".join(model.version for model in models)
        raise NotFoundError("MODEL_VERSION_UNKNOWN", f"there is no version {version!r} of {MODEL}; there are {served}")

    async def analyze(self, texts: Sequence[str], version: str = "") -> list[Result]:
        """Return what each text means, in order; a text that the model cannot cope with comes to a Problem.

        Raises:
            UnavailableError: Triton is down, late, overloaded or has no such model now.
        """
        version = version or self._version
        config = await self._config(version)
        results: list[Result] = []
        raw = [text.encode() for text in texts]
        while len(results) < len(raw):
            batch = _head(raw[len(results) :], config.max_batch_size, self._request_bytes)
            try:
                results += await self._analyze_batch(batch, version)
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
        loads = self._loads
        try:
            await self._infer([_HARMLESS], self._version, within_s=SILENT_S)
        except InferenceServerException as error:
            if error.status() == _LATE:
                await self._reload("SILENT", error, loads)
            raise await self._unavailable(error) from error
        if len(batch) == 1:
            raise late.unavailable

    async def _analyze_batch(self, texts: Sequence[bytes], version: str, *, blamed: bool = False) -> list[Result]:
        loads = self._loads
        try:
            answer = await self._infer(texts, version)
        except InferenceServerException as error:
            if error.status() == _LATE:
                raise _LateError(await self._unavailable(error)) from error
            if error.status() in _UNAVAILABLE:
                raise await self._unavailable(error) from error
            # It may also be that the model was replaced by one with other outputs.
            self._configs.clear()
            if error.status() == _OUT_OF_STEP:
                await self._reload(_OUT_OF_STEP, error, loads)
                raise await self._unavailable(error) from error
            if any(words in str(error.message()) for words in _UNHEALTHY):
                # Not asked whether it lives: a process that was only late still answers, to a question that Triton no
                # longer waits for, and each later answer is then taken for that of the question before it.
                await self._reload("UNHEALTHY", error, loads)
                if len(texts) == 1 and not blamed:
                    # Others' texts were with it.
                    return await self._analyze_batch(texts, version, blamed=True)
            else:
                await self._revive(loads)
            if len(texts) == 1:
                LOG.warning("text not analysed", status=error.status(), error=str(error.message())[:200])
                return [Problem(MODEL_FAILED, str(error.message())[:512], MODEL, version)]
            # One text may have spoilt it for all: the halves tell which.
            middle = len(texts) // 2
            return [
                *await self._analyze_batch(texts[:middle], version),
                *await self._analyze_batch(texts[middle:], version),
            ]
        served = answer.get_response().model_version
        config = await self._config(served)
        # Where none is named, the newest answers: what is known of it must be of that one.
        self._configs[version] = config
        return list(_results(answer, served, config.taxonomy_version))

    async def _revive(self, loads: int) -> None:
        """Make sure that the model can analyse anything at all; where it can't, load it anew.

        Raises:
            UnavailableError: that was refused or did not help.
        """
        try:
            # Triton hands requests to the instances in turn, and any of them may be the dead one.
            for _ in range((await self._config(self._version)).instances + 1):
                await self._infer([_HARMLESS], self._version)
        except InferenceServerException as dead:
            if dead.status() in _UNAVAILABLE - {_LATE}:
                # Busy is not dead: to load the model anew would drop what all others wait for.
                raise await self._unavailable(dead) from dead
            await self._reload("DEAD", dead, loads)

    async def _reload(self, reason: str, why: InferenceServerException, loads: int) -> None:
        """Load the model anew, with new processes, unless that was done since there were so many `loads`.

        A Python model is a process for each instance. Triton does not start one again that has died.

        Raises:
            UnavailableError: that was refused or did not help.
        """
        async with self._reviving:
            if self._loads != loads:
                return
            LOG.warning("loading the model anew", reason=reason, status=why.status(), error=str(why.message())[:200])
            self._loads += 1
            self._reloads.add(1, {"reason": reason})
            try:
                # A server that does not tell that it lives has more to mend than its model; ending it does.
                await self._client.is_server_live(client_timeout=PROBE_TIMEOUT_S)
                await self._client.unload_model(MODEL, client_timeout=LOAD_TIMEOUT_S)
                await self._client.load_model(MODEL, client_timeout=LOAD_TIMEOUT_S)
                await self._infer([_HARMLESS], self._version)
            except InferenceServerException as error:
                raise await self._unavailable(error) from error

    async def _unavailable(self, error: InferenceServerException) -> UnavailableError:
        if error.status() == _NOT_LOADED:
            # Whoever unloaded it may have died before loading it; where it is being loaded, this changes nothing.
            with contextlib.suppress(InferenceServerException):
                await self._client.load_model(MODEL, client_timeout=LOAD_TIMEOUT_S)
        return UnavailableError("triton", f"{error.status()}: {str(error.message())[:200]}")

    async def _infer(self, texts: Sequence[bytes], version: str, within_s: float | None = None) -> Any:
        config = await self._config(version)
        tensor = InferInput("TEXT", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=object)[:, None])
        attributes: dict[str, str | int] = {"rpc.system": "grpc", "recorrido.texts": len(texts)}
        with telemetry.span(f"triton infer {MODEL}", SpanKind.CLIENT, attributes=attributes):
            try:
                answer = await self._client.infer(
                    MODEL,
                    [tensor],
                    version,
                    # Named, because the model does more work for more outputs.
                    outputs=[InferRequestedOutput(name) for name in _OUTPUTS if name in config.outputs],
                    client_timeout=within_s or TIMEOUT_S,
                    headers=telemetry.inject(),
                )
            except InferenceServerException as error:
                self._silent = error.status() == _LATE
                raise
        self._silent = False
        _verify(answer, texts, checked="CHECK" in config.outputs)
        return answer

    async def _config(self, version: str) -> _Config:
        """Return the configuration of a version; the empty version is the newest at the time of the first call."""
        if version not in self._configs:
            try:
                response = await self._client.get_model_config(MODEL, version, client_timeout=PROBE_TIMEOUT_S)
            except InferenceServerException as error:
                raise await self._unavailable(error) from error
            config = response.config
            languages = _parameter(config, "languages")
            self._configs[version] = _Config(
                max_batch_size=max(1, config.max_batch_size),
                instances=max(1, sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)),
                taxonomy_version=_parameter(config, "taxonomy_version"),
                languages=tuple(languages.split(",")) if languages else (),
                outputs=frozenset(output.name for output in config.output),
            )
        return self._configs[version]


def _verify(answer: Any, texts: Sequence[bytes], *, checked: bool) -> None:
    """Make sure that this is the answer to these texts.

    Raises:
        InferenceServerException: OUT_OF_STEP.
    """
    if checked:
        checks = answer.as_numpy("CHECK")
        same = checks is not None and checks.reshape(-1).tolist() == [zlib.crc32(text) for text in texts]
    else:
        same = len(answer.as_numpy("ERROR")) == len(texts)
    if not same:
        raise InferenceServerException(f"the answer is not to these {len(texts)} texts", _OUT_OF_STEP)


def _head(texts: Sequence[bytes], count: int, size_bytes: int) -> Sequence[bytes]:
    """Return the first of `texts`: at least one, at most `count`, and together at most `size_bytes`."""
    total = 0
    for index, text in enumerate(texts[:count]):
        total += len(text)
        if index and total > size_bytes:
            return texts[:index]
    return texts[:count]


def _parameter(config: Any, name: str) -> str:
    return str(config.parameters[name].string_value) if name in config.parameters else ""


def _number(version: str) -> int:
    return int(version) if version.isdigit() else 0


def _aspect(name: str) -> Aspect:
    return Aspect(f"ASPECT_{name.upper()}")


# -- what the model says -------------------------------------------------------------------------------------------


class _Said(msgspec.Struct):
    """What the model says about a text, or a sentence: labels in lower case. The model's own JSON of a sentence."""

    language: str = ""
    sentiment: str = ""
    sentiment_score: float = 0.0
    point: str = ""
    need: str = ""
    emotion: str = ""
    intent: str = ""
    effort: str = ""
    urgency: str = ""
    confidence: dict[str, float] = {}
    unsure: list[str] = []


class _SaidOfSentence(_Said):
    start: int = 0
    end: int = 0


_SENTENCES = msgspec.json.Decoder(list[_SaidOfSentence])


def _results(answer: Any, version: str, taxonomy_version: str) -> Iterator[Result]:
    # The server leaves out what its version does not answer.
    found = {name: answer.as_numpy(name) for name in _OUTPUTS}
    columns = {name: array.tolist() for name, array in found.items() if array is not None}
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        if error := _text(row, "ERROR"):
            yield Problem(error.upper(), f"the model refused the text: {error}", MODEL, version)
            continue
        more = zip(_MORE_CONFIDENCE, row.get("MORE_CONFIDENCE", ()), strict=False)
        said = _Said(
            sentiment_score=row["SENTIMENT_SCORE"][0],
            confidence={**dict(zip(_CONFIDENCE, row["CONFIDENCE"], strict=True)), **dict(more)},
            unsure=[name for name in _text(row, "UNSURE").split(",") if name],
            **{name: _text(row, name.upper()) for name in _ASPECTS},
        )
        yield Analysis(
            **_answers(said),
            sentences=tuple(
                Sentence(start=each.start, end=each.end, **_answers(each))
                for each in _SENTENCES.decode(_text(row, "SENTENCES") or "[]")
            ),
            model=MODEL,
            model_version=version,
            taxonomy_version=taxonomy_version,
        )


def _text(row: Mapping[str, Any], name: str) -> str:
    return str(row[name][0].decode()) if name in row else ""


def _answers(said: _Said) -> dict[str, Any]:
    """Return the fields of an Analysis or a Sentence. What the model is unsure of is named.

    It is still answered where it is likelier than all else together: counts over many texts are off by more when a
    third of them is left out, the undecided ones, than when some are wrong. A language or a need is told when sure.
    """

    def label(name: str) -> str:
        told = name not in said.unsure or (name not in _SURE_ONLY and said.confidence.get(name, 0.0) > _LIKELIER)
        return str(getattr(said, name)) if told else ""

    return {
        "language": label("language"),
        "sentiment": Sentiment(f"SENTIMENT_{label('sentiment').upper()}"),
        "sentiment_score": round(said.sentiment_score, 4),
        "point": PointKind(f"POINT_KIND_{label('point').upper()}"),
        "need_path": label("need"),
        "emotion": Emotion(f"EMOTION_{label('emotion').upper()}"),
        "intent": Intent(f"INTENT_{label('intent').upper()}"),
        "effort": Effort(f"EFFORT_{label('effort').upper()}"),
        "urgency": Urgency(f"URGENCY_{label('urgency').upper()}"),
        "confidence": Confidence(
            **{name: round(value, 4) for name, value in said.confidence.items() if name in _ASPECTS}
        ),
        "unsure": tuple(_aspect(name) for name in _ASPECTS if name in said.unsure),
    }
