"""Files imported into a real ingest: once, with every bad row told and kept, and over a sudden end."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import yaml

from recorrido.ingest.v1.rejection_service_pb2 import ListRejectedRequest
from recorrido.ingest.v1.rejection_service_pb2_grpc import RejectionServiceStub
from services.cli.importing.ledger import progress_path
from tests.support.cli import ROOT, Result, environment, recorrido, start
from tests.support.cluster import Cluster, running
from tests.support.importing import FIELDS, HEADER, WHEN
from tests.support.truth import stored
from tests.support.wait import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

#: For commands that need no cluster.
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto/gen'}"}
EXAMPLES = ROOT / "examples/import"
#: Runs a command and tells, as its last word on stderr, the most memory that it took; of this child alone, whatever
#: else the test process has started.
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with running(["ingest"], data=tmp_path_factory.mktemp("data")) as started:
        yield started


def mapping_file(folder: Path, source: str, **more: Any) -> Path:
    """Write a mapping whose interactions have a source of their own."""
    content = {"format": "csv", "interaction": {**FIELDS, "source": {"value": source}}, **more}
    path = folder / "mapping.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def csv_file(folder: Path, count: int, customers: int = 50) -> Path:
    path = folder / "rows.csv"
    rows = (f"{n},c{n % customers},event,{WHEN},words {n}" for n in range(count))
    path.write_text("\n".join((HEADER, *rows)) + "\n", encoding="utf-8")
    return path


async def imported(cluster: Cluster, *arguments: str | Path) -> Result:
    return await recorrido(cluster, "import", "file", *map(str, arguments), "--json", within_s=120)


def uri(cluster: Cluster) -> str:
    return f"esdb://{cluster.address('eventstore')}?tls=false"


async def recorded(cluster: Cluster, source: str) -> list[dict[str, Any]]:
    """Return the interactions of a source that the store holds, in its order."""
    events = [json.loads(e.data) for e in await stored(uri(cluster)) if e.type.endswith(".InteractionRecorded")]
    return [event["interaction"] for event in events if event["interaction"]["source"] == source]


async def kept(cluster: Cluster, source: str, count: int) -> list[Any]:
    """Return what ingest keeps of the refused interactions of a source, once it lists so many."""
    async with grpc.aio.insecure_channel(cluster.address("ingest")) as channel:
        stub = RejectionServiceStub(channel)

        async def listed() -> list[Any]:
            answer = await stub.ListRejected(ListRejectedRequest(source=source), timeout=10)
            return list(answer.rejections) if answer.total >= count else []

        return await until(listed, 20)


@pytest.mark.parametrize(
    ("file", "source", "count"),
    [
        ("orders.csv", "shop", 6),
        ("survey.tsv", "survey", 3),
        ("tickets.jsonl", "helpdesk", 2),
        ("segment.jsonl", "segment", 3),
        ("cloudevents.jsonl", "/store/ljubljana", 2),
        ("claims.xes", "warranty", 2),
    ],
)
async def test_the_examples_are_recorded_once(
    cluster: Cluster, tmp_path: Path, file: str, source: str, count: int
) -> None:
    # The progress file is written beside the file.
    copy = tmp_path / file
    copy.write_bytes((EXAMPLES / file).read_bytes())
    told = EXAMPLES / f"{Path(file).stem}.yaml"
    first = await imported(cluster, copy, "--mapping", told)
    assert (first.code, first.err) == (0, "")
    assert (first.json["recorded"], first.json["rejected"], first.json["problems"]) == (count, 0, [])
    again = await imported(cluster, copy, "--mapping", told)
    assert (again.code, again.json["recorded"], again.json["duplicates"]) == (0, 0, count)
    resumed = await imported(cluster, copy, "--mapping", told, "--resume")
    assert (resumed.json["recorded"], resumed.json["duplicates"]) == (0, 0)
    assert resumed.json["settled_before"] >= count
    assert len(await recorded(cluster, source)) == count


async def test_segment_tells_who_an_anonymous_visitor_is(cluster: Cluster, tmp_path: Path) -> None:
    calls = [
        {"type": "page", "messageId": "p", "anonymousId": "v1", "timestamp": WHEN, "name": "Home"},
        {"type": "identify", "messageId": "i", "anonymousId": "v1", "userId": "vera", "timestamp": WHEN},
        {"type": "identify", "messageId": "j", "anonymousId": "v1", "userId": "zoran", "timestamp": WHEN},
    ]
    path = tmp_path / "calls.jsonl"
    path.write_text("\n".join(map(json.dumps, calls)), encoding="utf-8")
    result = await imported(cluster, path, "--mapping", EXAMPLES / "segment.yaml")
    summary = result.json
    assert (result.code, summary["recorded"], summary["linked"], summary["rejected"]) == (1, 1, 1, 1)
    # Which of the two came first is not told by a file; the other is told with its line.
    (problem,) = summary["problems"]
    assert (problem["line"] in {2, 3}, problem["reason"]) == (True, "LINK_REFUSED")
    assert "IDENTITY_TAKEN" in problem["message"]
    events = [json.loads(e.data) for e in await stored(uri(cluster)) if e.type.endswith(".IdentityLinked")]
    assert [e["identityCustomerId"] for e in events if e["identity"]["value"] == "v1"] == ["anonymous:v1"]


async def test_a_row_can_be_an_interaction_and_a_link(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        f"{HEADER}\n1,eva,event,{WHEN},card1\n2,eva,event,{WHEN},\n3,ivo,event,{WHEN},card1\n", encoding="utf-8"
    )
    link = {"when": {"words": {"empty": False}}, "kind": "loyalty_card", "value": "words", "customer_id": "customer"}
    told = mapping_file(tmp_path, "cards", links=[link])
    summary = (await imported(cluster, path, "--mapping", told)).json
    (problem,) = summary["problems"]
    assert (summary["linked"], summary["rejected"], problem["reason"]) == (1, 1, "LINK_REFUSED")
    # The interaction is as good without the link.
    assert {each["interactionId"] for each in await recorded(cluster, "cards")} == {"1", "2", "3"}


async def test_every_bad_row_is_told_and_kept_and_the_good_ones_are_recorded(cluster: Cluster, tmp_path: Path) -> None:
    path = csv_file(tmp_path, 100)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[10] = lines[10].replace(WHEN, "never")
    lines[20] = "19,c19"
    lines[30] = lines[30].replace(",event,", ",,")
    # What only ingest knows to be wrong.
    lines[40] = lines[40].replace(WHEN, "2999-01-01T00:00:00Z")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    told, errors = mapping_file(tmp_path, "bad-rows"), tmp_path / "errors.jsonl"
    result = await imported(cluster, path, "--mapping", told, "--errors", errors)
    assert (result.code, result.json["recorded"], result.json["rejected"]) == (1, 96, 4)
    expected = [
        (11, "UNREADABLE", "occurred_at: 'never' is no ISO 8601 time"),
        (21, "UNREADABLE", "has 2 fields, not 5"),
        (31, "UNREADABLE", "touchpoint: nothing in event"),
        (41, "INVALID", "occurred_at: not in the future"),
    ]
    for problems in (result.json["problems"], list(map(json.loads, errors.read_text(encoding="utf-8").splitlines()))):
        assert [(each["file"], each["line"], each["reason"]) for each in problems] == [
            ("rows.csv", line, reason) for line, reason, _ in expected
        ]
        assert all(part in each["message"] for each, (_, _, part) in zip(problems, expected, strict=True))
    assert len(await recorded(cluster, "bad-rows")) == 96
    rejections = {each.interaction.attributes["import.line"]: each for each in await kept(cluster, "bad-rows", 4)}
    assert set(rejections) == {"11", "21", "31", ""}
    assert rejections["11"].interaction.customer.customer_id == "c9"
    (unread,) = rejections["11"].violations
    assert (unread.field, unread.rule[:27]) == ("occurred_at", "'never' is no ISO 8601 time")
    # Nobody may resubmit it as it was: a part of the row is not in it.
    assert [(each.field, each.note) for each in rejections["11"].altered] == [
        ("occurred_at", f"could not be read: {unread.rule}")
    ]
    assert rejections["21"].interaction.attributes["import.row"].strip() == "19,c19"
    # Again: nothing is recorded, and nothing is kept, a second time.
    again = await imported(cluster, path, "--mapping", told, "--errors", errors)
    assert (again.code, again.json["recorded"], again.json["duplicates"], again.json["rejected"]) == (1, 0, 96, 4)
    assert len(await kept(cluster, "bad-rows", 4)) == 4


async def test_for_people_the_first_problems_are_shown(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join((HEADER, *(f"{n},c,event,never,w" for n in range(30)))) + "\n", encoding="utf-8")
    told = mapping_file(tmp_path, "people")
    result = await recorrido(cluster, "import", "file", str(path), "--mapping", str(told))
    assert result.code == 1
    assert "rows.csv, line 2: UNREADABLE: occurred_at: 'never'" in result.err
    assert "rows.csv, line 21: " in result.err
    assert "rows.csv, line 22: " not in result.err
    assert "and 10 more" in result.err
    assert "recorded 0, duplicates 0, rejected 30, skipped 0" in result.err


async def test_a_customers_are_recorded_in_their_order(cluster: Cluster, tmp_path: Path) -> None:
    path = csv_file(tmp_path, 6000, customers=7)
    result = await imported(cluster, path, "--mapping", mapping_file(tmp_path, "order"))
    assert (result.code, result.json["recorded"]) == (0, 6000)
    found = await recorded(cluster, "order")
    for customer in range(7):
        numbers = [int(e["interactionId"]) for e in found if e["customer"]["customerId"] == f"c{customer}"]
        assert numbers == list(range(customer, 6000, 7))


async def test_a_dry_run_sends_nothing_and_tells_all(cluster: Cluster, tmp_path: Path) -> None:
    path = csv_file(tmp_path, 40)
    path.write_text(path.read_text(encoding="utf-8") + "x\n" * 30, encoding="utf-8")
    told = mapping_file(tmp_path, "dry", skip=[{"when": {"id": "3"}, "reason": "threes"}])
    result = await imported(cluster, path, "--mapping", told, "--dry-run", "--limit", "2")
    summary = result.json
    assert (result.code, summary["would_send"], summary["skipped"], summary["rejected"]) == (1, 39, 1, 30)
    assert [each["interactionId"] for each in summary["interactions"]] == ["0", "1"]
    assert [each["line"] for each in summary["problems"]] == list(range(42, 72))
    assert summary["skipped_by_reason"] == {"threes": 1}
    text = await recorrido(cluster, "import", "file", str(path), "--mapping", str(told), "--dry-run", "--limit", "2")
    assert [json.loads(line)["interactionId"] for line in text.out.splitlines()] == ["0", "1"]
    assert text.err.count("has 1 fields, not 5") == 30
    assert await recorded(cluster, "dry") == []
    assert not progress_path(path).exists()


async def test_nothing_is_sent_when_one_file_or_the_mapping_is_wrong(cluster: Cluster, tmp_path: Path) -> None:
    path, told = csv_file(tmp_path, 5), mapping_file(tmp_path, "wrong")
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n", encoding="utf-8")
    result = await imported(cluster, path, other, "--mapping", told)
    assert result.code == 1
    assert "other.csv: has no column 'customer'" in result.err
    missing = await imported(cluster, path, tmp_path / "nowhere.csv", "--mapping", told)
    assert (missing.code, "No such file" in missing.err) == (1, True)
    told.write_text(told.read_text(encoding="utf-8").replace("value: web", "value: wb"), encoding="utf-8")
    refused = await imported(cluster, path, "--mapping", told)
    assert (refused.code, "interaction.channel: value: 'wb' is not one of" in refused.err) == (1, True)
    assert await recorded(cluster, "wrong") == []


async def test_a_file_that_is_cut_off_is_told_and_the_next_is_imported(cluster: Cluster, tmp_path: Path) -> None:
    told = tmp_path / "claims.yaml"
    text = (EXAMPLES / "claims.yaml").read_text(encoding="utf-8").replace("warranty", "cut-off")
    told.write_text(text, encoding="utf-8")
    log = (EXAMPLES / "claims.xes").read_text(encoding="utf-8")
    cut, whole = tmp_path / "cut.xes", tmp_path / "whole.xes"
    cut.write_text(log[: log.index("<float")], encoding="utf-8")
    whole.write_text(log.replace("C-501", "C-502"), encoding="utf-8")
    result = await imported(cluster, cut, whole, "--mapping", told)
    assert (result.code, result.json["recorded"]) == (1, 3)
    (problem,) = result.json["problems"]
    assert (problem["file"], problem["reason"]) == ("cut.xes", "BROKEN_FILE")
    # Mended, it goes on by what it is now.
    cut.write_text(log, encoding="utf-8")
    mended = await imported(cluster, cut, whole, "--mapping", told, "--resume")
    assert (mended.code, mended.json["recorded"], mended.json["duplicates"]) == (0, 1, 1)


async def test_without_ingest_it_says_so_soon(tmp_path: Path, unused_tcp_port: int) -> None:
    path, told = csv_file(tmp_path, 5), mapping_file(tmp_path, "nobody")
    process = await start(
        ("import", "file", str(path), "--mapping", str(told)),
        {**ENVIRONMENT, "RECORRIDO_INGEST_ADDRESS": f"127.0.0.1:{unused_tcp_port}"},
    )
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert b"ingest does not answer at" in err


async def test_killed_in_the_middle_and_resumed_nothing_is_lost_or_doubled(cluster: Cluster, tmp_path: Path) -> None:
    count = 30_000
    path, told, errors = csv_file(tmp_path, count), mapping_file(tmp_path, "killed"), tmp_path / "errors.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    bad = range(100, count, 100)
    for n in bad:
        lines[n] = "short"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ("import", "file", str(path), "--mapping", str(told), "--errors", str(errors))
    process = await start(arguments, environment(cluster.ports))

    def under_way() -> int:
        try:
            return int(json.loads(progress_path(path).read_bytes())["records"])
        except FileNotFoundError:
            return 0

    settled = await until(under_way, 60)
    assert process.returncode is None, "it was through before it could be killed"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    settled = under_way()
    assert 0 < settled < count

    resumed = await imported(cluster, path, "--mapping", told, "--errors", errors, "--resume")
    summary = resumed.json
    assert resumed.code == 1
    assert summary["settled_before"] == settled
    # Sent anew is only what was not settled; what of it had come through is a duplicate.
    assert summary["recorded"] + summary["duplicates"] + summary["rejected"] == count - settled
    found = sorted(int(each["interactionId"]) for each in await recorded(cluster, "killed"))
    assert found == sorted({*range(count)} - {n - 1 for n in bad})
    # Each bad row stands in the file of errors once, in the order of the file.
    told_lines = [json.loads(line)["line"] for line in errors.read_text(encoding="utf-8").splitlines()]
    assert told_lines == [n + 1 for n in bad]


async def test_a_hundred_megabytes_are_read_in_little_memory(tmp_path: Path) -> None:
    path, told = tmp_path / "large.csv", mapping_file(tmp_path, "large")
    words = "word " * 400
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER + "\n")
        for n in range(52_000):
            file.write(f"{n},c{n},event,{WHEN},{words}\n")
    assert path.stat().st_size > 100_000_000
    arguments = ("import", "file", str(path), "--mapping", str(told), "--dry-run", "--json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MEASURED, sys.executable, "-m", "services.cli.main", *arguments),
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert json.loads(out)["would_send"] == 52_000
    # In KiB; the command with its libraries takes some 90 MiB.
    assert int(err.decode().split()[-1]) < 400 * 1024
