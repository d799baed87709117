"""The contract of the `feedback` endpoint, against the real Triton."""

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient

from infra.local import probes
from infra.triton import shared_memory, taxonomy
from infra.triton.install import DEFAULT_VENV, MODELS, Installation, InstallationError, build_models, find, install
from infra.triton.launch import TritonSettings, command, otlp_traces_url
from tests.support.triton import OUTPUTS, Server, infer, triton

NEUTRAL = {"LANGUAGE": b"", "SENTIMENT": b"neutral", "SENTIMENT_SCORE": 0.0, "POINT": b"none", "NEED": b""}
NEUTRAL |= dict.fromkeys(("EMOTION", "INTENT", "EFFORT", "URGENCY"), b"")
ALL = "language,sentiment,point,need,emotion,intent,effort,urgency"
GOOD = b"Chegou antes do prazo, recomendo!"


@pytest.fixture(scope="module", autouse=True)
def installation() -> Installation:
    return install()


@pytest.fixture(scope="module")
def server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert installation.stub.exists()
    with triton(tmp_path_factory.mktemp("triton") / "log") as running:
        yield running


def test_metadata_names_inputs_outputs_and_taxonomy(server: Server) -> None:
    with closing(grpcclient.InferenceServerClient(server.address)) as client:
        metadata = client.get_model_metadata("feedback", as_json=True)
        config = client.get_model_config("feedback", as_json=True)["config"]
    assert [(each["name"], each["datatype"]) for each in metadata["inputs"]] == [("TEXT", "BYTES")]
    types = {each["name"]: (each["datatype"], each["shape"]) for each in metadata["outputs"]}
    assert set(types) == set(OUTPUTS)
    assert types["SENTIMENT_SCORE"] == ("FP32", ["-1", "1"])
    assert types["CONFIDENCE"] == types["MORE_CONFIDENCE"] == ("FP32", ["-1", "4"])
    known = taxonomy.load()
    assert config["parameters"]["taxonomy_version"]["string_value"] == known.version
    assert config["parameters"]["languages"]["string_value"] == ",".join(known.languages)


def test_answers_stay_in_their_ranges(server: Server) -> None:
    texts = [
        "Não recebi o produto",
        "Great product, love it",
        "Muy mala calidad, no vuelvo",
        "Dostava je bila prepozna",
        "ok",
    ]
    answer = server.analyze(texts)
    needs = taxonomy.load().needs
    assert [language[0] for language in answer["LANGUAGE"][:4]] == [b"pt", b"en", b"es", b"sl"]
    assert [sentiment[0] for sentiment in answer["SENTIMENT"][:3]] == [b"negative", b"positive", b"negative"]
    assert {point[0] for point in answer["POINT"]} <= {b"pain", b"itch", b"delight", b"none"}
    assert all(not need[0] or need[0].decode() in needs for need in answer["NEED"])
    assert answer["CONFIDENCE"].shape == (5, 4)
    assert answer["CONFIDENCE"].dtype == np.float32
    assert ((answer["CONFIDENCE"] > 0) & (answer["CONFIDENCE"] <= 1)).all()
    assert (np.abs(answer["SENTIMENT_SCORE"]) <= 1).all()
    assert not answer["ERROR"].any()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param(b"", b"", id="empty"),
        pytest.param(b" \t\n ", b"", id="whitespace"),
        pytest.param(b"\x00\x01", b"", id="NUL"),
        pytest.param(b"\xff\xfe\xfa", b"invalid_utf8", id="not UTF-8"),
        pytest.param("olá".encode()[:-1], b"invalid_utf8", id="cut in a character"),
        pytest.param(b"\xed\xa0\x80", b"invalid_utf8", id="lone surrogate"),
        pytest.param(b"a" * 16385, b"too_large", id="16 KiB and one byte"),
        pytest.param(b"a" * 2**20, b"too_large", id="1 MiB"),
    ],
)
def test_a_text_without_content_is_neutral_and_spoils_no_other(server: Server, text: bytes, error: bytes) -> None:
    alone = server.analyze([GOOD])
    answer = server.analyze([GOOD, text, GOOD])
    assert answer["ERROR"][:, 0].tolist() == [b"", error, b""]
    assert {name: answer[name][1, 0] for name in NEUTRAL} == NEUTRAL
    assert answer["CONFIDENCE"][1].tolist() == answer["MORE_CONFIDENCE"][1].tolist() == [0, 0, 0, 0]
    assert answer["UNSURE"][1, 0].decode() == ALL
    assert answer["SENTENCES"][1, 0] == b"[]"
    for row in (0, 2):
        assert all(answer[name][row] == alone[name][0] for name in ("LANGUAGE", "SENTIMENT", "POINT", "NEED"))
        np.testing.assert_allclose(answer["CONFIDENCE"][row], alone["CONFIDENCE"][0], rtol=0.02)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * 16384, id="one word of 16 KiB"),
        pytest.param("né, ok? " * 1638, id="16 KiB of words"),
        pytest.param("😡" * 4096, id="4,096 emoji"),
        pytest.param("مرحبا، الخدمة سيئة", id="right to left"),
        pytest.param("配送が遅い", id="no spaces"),
        pytest.param("<b>Ótimo</b><script>alert(1)</script>", id="HTML"),
        pytest.param("İstanbul ẞ ǅ ﬁ e\u0301\u0301\u0301", id="odd letters"),
        pytest.param("\u200b\u202e\ufeff", id="invisible characters"),
        pytest.param("?!", id="punctuation"),
        pytest.param("1234567", id="digits"),
        pytest.param("&#" + "1" * 16382, id="a character with a number of 16 KiB"),
        pytest.param("&#" + "0" * 16000 + "65;", id="a character with very many noughts"),
        pytest.param("&" * 16384, id="ampersands"),
        pytest.param("<a" * 8192, id="unclosed markup"),
        pytest.param("." * 16384, id="full stops"),
        pytest.param("a" + " " * 16382 + "b", id="spaces between two words"),
    ],
)
def test_any_valid_text_up_to_the_limit_gets_a_result(server: Server, text: str) -> None:
    answer = server.analyze([text])
    assert answer["ERROR"][0, 0] == b""
    assert np.isfinite(answer["CONFIDENCE"]).all()


@pytest.mark.parametrize("version", ["1", "2"])
def test_versions_side_by_side_answer_all_outputs(server: Server, version: str) -> None:
    answer = server.analyze(["Não recebi o produto", "Great product, love it"], version)
    assert [sentiment[0] for sentiment in answer["SENTIMENT"]] == [b"negative", b"positive"]
    assert set(answer) == set(OUTPUTS)
    newer = ("EMOTION", "INTENT", "EFFORT", "URGENCY")
    assert all(bool(answer[name][row, 0]) == (version == "2") for name in newer for row in (0, 1))


@pytest.mark.parametrize("version", ["1", "2"])
def test_each_answer_tells_which_text_it_is_to(server: Server, version: str) -> None:
    texts = [b"", b"ok", b"\xff", "olá".encode(), b"x" * 20_000]
    check = server.analyze(texts, version)["CHECK"]
    assert check[:, 0].tolist() == [zlib.crc32(text) for text in texts]


def test_each_sentence_is_answered_for(server: Server) -> None:
    praise, blame = "The staff were wonderful, thank you so much!", "But the delivery came three weeks late."
    together, alone = server.analyze([f"{praise} {blame}", praise])["SENTENCES"][:, 0]
    first, second = json.loads(together)
    assert (first["start"], first["end"]) == (0, len(praise))
    assert (second["start"], second["end"]) == (len(praise) + 1, len(praise) + 1 + len(blame))
    assert (first["sentiment"], first["point"]) == ("positive", "delight")
    assert (second["sentiment"], second["point"]) == ("negative", "pain")
    assert second["need"].startswith("delivery")
    assert set(first["confidence"]) == set(ALL.split(","))
    (only,) = json.loads(alone)
    assert (only["sentiment"], only["end"]) == ("positive", len(praise))
    assert only["confidence"]["sentiment"] == pytest.approx(first["confidence"]["sentiment"], abs=0.02)


def test_a_text_of_very_many_sentences_has_a_limit(server: Server) -> None:
    answer = server.analyze(["Ok. " * 4000])
    assert len(json.loads(answer["SENTENCES"][0, 0])) == 64


def test_markup_says_nothing(server: Server) -> None:
    plain, marked = server.analyze(["Ótimo & rápido", "<p class='x'>Ótimo &amp; rápido</p>"])["CONFIDENCE"]
    np.testing.assert_allclose(plain, marked, rtol=0.02)


def test_what_is_not_of_a_known_script_has_no_language(server: Server) -> None:
    answer = server.analyze(["مرحبا، الخدمة سيئة جدا", "обслуживание ужасное", "The service was awful"])
    assert [language[0] for language in answer["LANGUAGE"]] == [b"", b"", b"en"]
    assert [b"language" in unsure[0] for unsure in answer["UNSURE"]] == [True, True, False]


def test_a_full_batch_of_the_longest_texts(server: Server) -> None:
    rng = np.random.default_rng(7)
    texts = [bytes(rng.integers(97, 123, 16384, dtype=np.uint8)).replace(b"q", b" ") for _ in range(64)]
    answer = server.analyze(texts)
    assert not answer["ERROR"].any()


def test_concurrent_callers_each_get_their_own_answers(server: Server) -> None:
    texts = [f"{words} {number}".encode() for number, words in enumerate(["Muito bom", "Péssimo", "", "ok"] * 8)]
    expected = server.analyze(texts)

    def ask(start: int) -> None:
        with closing(grpcclient.InferenceServerClient(server.address)) as client:
            for offset in range(16):
                rows = [(start + offset + step) % len(texts) for step in range(3)]
                answer = infer(client, [texts[row] for row in rows], timeout_seconds=30)
                np.testing.assert_allclose(answer["CONFIDENCE"], expected["CONFIDENCE"][rows], rtol=0.02)
                assert (answer["SENTIMENT"] == expected["SENTIMENT"][rows]).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_whether_a_model_answers_can_be_asked(server: Server) -> None:
    async def asked(model: str) -> None:
        await probes.infers(f"127.0.0.1:{server.settings.http_port}", model)()

    asyncio.run(asked("feedback"))
    with pytest.raises(probes.NotReadyError, match=r"HTTP/1.1 4\d\d"):
        asyncio.run(asked("lost"))


def test_metrics_count_inferences(server: Server) -> None:
    server.analyze([b"ok"])
    url = f"http://127.0.0.1:{server.settings.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    counts = [line for line in lines if line.startswith('nv_inference_request_success{model="feedback"')]
    assert sum(float(line.split()[-1]) for line in counts) >= 1


def test_it_stops_in_seconds_and_starts_again_with_the_same_answers(tmp_path: Path) -> None:
    with triton(tmp_path / "log") as server:
        before = server.analyze([GOOD])
        assert server.stop() < 8
        assert not server.ready()
        server.start()
        after = server.analyze([GOOD])
    for name in OUTPUTS:
        np.testing.assert_array_equal(before[name], after[name])


def test_a_new_version_takes_over_without_a_dropped_request(tmp_path: Path) -> None:
    served = tmp_path / "models" / "feedback"
    shutil.copytree(MODELS / "feedback" / "1", served / "1", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(MODELS / "feedback" / "config.pbtxt", served / "config.pbtxt")
    with triton(tmp_path / "log", model_repository=served.parent) as server:
        versions: list[str] = []
        going = threading.Event()
        going.set()

        def ask() -> None:
            text = grpcclient.InferInput("TEXT", [1, 1], "BYTES")
            text.set_data_from_numpy(np.array([[GOOD]], dtype=object))
            with closing(grpcclient.InferenceServerClient(server.address)) as client:
                while going.is_set():
                    versions.append(client.infer("feedback", [text]).get_response().model_version)

        with ThreadPoolExecutor(1) as pool, closing(grpcclient.InferenceServerClient(server.address)) as client:
            asking = pool.submit(ask)
            shutil.copytree(served / "1", served / "2", ignore=shutil.ignore_patterns("__pycache__"))
            client.load_model("feedback", client_timeout=60)
            now = infer(client, [GOOD], version="2")["SENTIMENT"][0, 0]
            going.clear()
            asking.result()
            assert client.is_model_ready("feedback", "1")
    assert now == b"positive"
    assert versions[0] == "1"
    # Whoever names no version is answered all the time, and from some moment on by the new one.
    assert versions == sorted(versions)


def test_the_module_becomes_the_server(tmp_path: Path) -> None:
    """`python -m infra.triton` execs: the process that was started is Triton itself."""
    arguments = ["--http-port", "0", "--model-repository", str(tmp_path)]
    probe = "import os, sys; os.execve = lambda *a: print(a[0]); from infra.triton.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(find().server / "bin" / "tritonserver")


def test_an_environment_that_was_never_prepared_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match=r"python -m infra\.triton\.install"):
        find(tmp_path)


def test_installing_again_does_nothing() -> None:
    started = time.monotonic()
    install()
    assert time.monotonic() - started < 1


def test_a_model_is_built_once_and_always_the_same(installation: Installation, tmp_path: Path) -> None:
    """From the pinned weights and what is committed, in Triton's own environment, which has no PyTorch."""
    version = tmp_path / "feedback" / "2"
    version.mkdir(parents=True)
    for name in ("adapter.npz", "model.json"):
        (version / name).write_bytes((MODELS / "feedback" / "2" / name).read_bytes())
    assert build_models(installation, tmp_path) == [version]
    assert build_models(installation, tmp_path) == []
    build_models(installation)
    for name in ("encoder.int8.onnx", "tokenizer.json"):
        assert (version / name).read_bytes() == (MODELS / "feedback" / "2" / name).read_bytes()
    (version / "encoder.int8.onnx").unlink()
    assert build_models(installation, tmp_path) == [version]


def test_a_model_that_cannot_be_built_is_a_clear_error(installation: Installation, tmp_path: Path) -> None:
    version = tmp_path / "feedback" / "9"
    version.mkdir(parents=True)
    (version / "adapter.npz").write_bytes(b"")
    (version / "model.json").write_bytes(b"{}")
    with pytest.raises(InstallationError, match=r"the model in .*9 could not be built"):
        build_models(installation, tmp_path)


def test_the_memory_of_a_server_that_was_killed_is_given_back_by_the_next(tmp_path: Path) -> None:
    gone = subprocess.Popen(["sleep", "60"])
    name = shared_memory.prefix(gone.pid)
    with triton(tmp_path / "log", shared_memory=name) as server:
        assert server.analyze(["Vielen Dank"])["SENTIMENT"][0] == b"positive"
        ours = list(shared_memory.REGIONS.glob(f"{name}*"))
        assert ours
        shared_memory.clear()
        assert all(region.exists() for region in ours)
        server.kill()
        # What the kernel keeps of a killed server is its regions.
        assert any(region.exists() for region in ours)
    gone.kill()
    gone.wait()
    shared_memory.clear()
    assert not any(region.exists() for region in ours)


def test_the_server_sees_nothing_of_the_callers_environment() -> None:
    argv, environment = command(TritonSettings(grpc_port=1, otlp_traces_url="http://127.0.0.1:4318/v1/traces"), find())
    assert "--grpc-address=127.0.0.1" in argv
    assert "--trace-config=opentelemetry,url=http://127.0.0.1:4318/v1/traces" in argv
    assert environment["PATH"].startswith(str(DEFAULT_VENV / "bin"))
    assert "PYTHONHOME" not in environment


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, "http://127.0.0.1:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4317"}, "http://127.0.0.1:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9999"}, None),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:9/x/", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "http://h:9/x/v1/traces",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "h:1", "RECORRIDO_TRITON_OTLP_TRACES_URL": "http://o/t"}, "http://o/t"),
    ],
)
def test_where_traces_go(environment: dict[str, str], url: str | None) -> None:
    assert otlp_traces_url(environment) == url


def test_graph_metadata_matches_the_configuration() -> None:
    """The labels travel in the graph; the configuration repeats the version for clients."""
    model = onnx.load(MODELS / "feedback/1/model.onnx")
    meta = json.loads({each.key: each.value for each in model.metadata_props}["recorrido"])
    known = taxonomy.load()
    assert meta["taxonomy_version"] == known.version
    assert set(meta["labels"]["need"]) == {"", *known.needs}
    assert (MODELS / "feedback/1/model.onnx").stat().st_size < 4_000_000


def test_the_encoder_is_of_this_taxonomy() -> None:
    meta = json.loads((MODELS / "feedback/2/model.json").read_text())
    known = taxonomy.load()
    assert meta["taxonomy_version"] == known.version
    assert meta["labels"]["need"] == ["", *known.needs]
    assert meta["labels"]["language"] == list(known.languages)
    assert set(meta["labels"]) == set(meta["temperatures"]) == set(meta["thresholds"]) == set(ALL.split(","))
    # What is taken off before the best answer is chosen: a number per label, never above nothing.
    assert {name: len(values) for name, values in meta["offsets"].items()} == {
        name: len(meta["labels"][name]) for name in meta["adjusted"]
    }
    assert max(value for values in meta["offsets"].values() for value in values) <= 0
    assert (MODELS / "feedback/2/adapter.npz").stat().st_size < 8_000_000
