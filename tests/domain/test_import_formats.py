"""Files as strangers write them: every format, broken records among good ones, and files that mean harm."""

import base64
import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from services.cli.failures import CommandError
from services.cli.importing.formats import jsonfiles
from services.cli.importing.records import RECORD_LIMIT, BrokenFileError, Record
from tests.support.importing import HEADER, WHEN, mapping, read_into, records, rows

EXAMPLE = f"1,ana,bought,{WHEN},fine"
XES = '<?xml version="1.0" encoding="UTF-8"?>\n<log xmlns="http://www.xes-standard.org/">\n'


def written(tmp_path: Path, content: str | bytes, name: str = "file.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def ids(found: Sequence[Record]) -> list[Any]:
    return [record.content and record.content.get("id") for record in found]


def bad(found: Sequence[Record]) -> list[tuple[int, str]]:
    return [(record.line, record.problem) for record in found if record.content is None]


# -- CSV and TSV -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_by_the_columns(tmp_path: Path, delimiter: str) -> None:
    # A header with more of another delimiter than of its own.
    header = delimiter.join(HEADER.split(",")) + delimiter + '"a,b;c|d"'
    path = written(tmp_path, f"{header}\n{delimiter.join(EXAMPLE.split(','))}{delimiter}x\n")
    (record,) = records(path, mapping())
    assert record.content == {**dict(zip(HEADER.split(","), EXAMPLE.split(","), strict=True)), "a,b;c|d": "x"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_the_encoding_is_found_by_its_mark(tmp_path: Path, encoding: str, ends: str) -> None:
    text = f"{HEADER}\n1,Žiga,bought,{WHEN},čudovito\n".replace("\n", ends)
    (record,) = records(written(tmp_path, text.encode(encoding)), mapping())
    assert record.content is not None
    assert (record.line, record.content["id"], record.content["customer"]) == (2, "1", "Žiga")


def test_another_encoding_has_to_be_stated(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}\n{EXAMPLE}\n2,Žiga,bought,{WHEN},čudovito\n".encode("cp1250"))
    with pytest.raises(CommandError, match=r"file\.csv, line 3: is not UTF-8; state"):
        records(path, mapping())
    stated = records(path, mapping(more={"csv": {"encoding": "cp1250"}}))
    assert stated[1].content is not None
    assert stated[1].content["customer"] == "Žiga"


def test_one_row_with_bytes_of_another_encoding_is_bad_alone(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}\n{EXAMPLE}\n2,".encode() + b"\x8eiga" + f",b,{WHEN},x\n{EXAMPLE}\n".encode())
    found = records(path, mapping(more={"csv": {"encoding": "utf-8"}}))
    assert ids(found) == ["1", None, "1"]
    assert bad(found) == [(3, "has bytes that are not utf-8")]


def test_rows_may_have_line_breaks_and_are_told_by_their_first_line(tmp_path: Path) -> None:
    text = f'{HEADER}\n1,ana,bought,{WHEN},"one\ntwo\n\nfour"\n\n2,bo\n3,bo,bought,{WHEN},"say ""hi"""\n'
    found = records(written(tmp_path, text), mapping())
    assert [record.line for record in found] == [2, 7, 8]
    assert bad(found) == [(7, "has 2 fields, not 5")]
    assert found[0].content is not None
    assert found[2].content is not None
    assert (found[0].content["words"], found[2].content["words"]) == ("one\ntwo\n\nfour", 'say "hi"')


def test_a_quote_that_is_not_closed_costs_one_row(tmp_path: Path) -> None:
    good = "".join(f"{n},ana,bought,{WHEN},fine\n" for n in range(10, 1000))
    for tail in ("", f'1000,bo,bought,{WHEN},"quoted"\n'):
        path = written(tmp_path, f'{HEADER}\n{EXAMPLE}\n2,ana,bought,{WHEN},"open\n{good}{tail}')
        found = records(path, mapping())
        assert [record.line for record in found if record.content is None] == [3]
        assert len(found) == 992 + bool(tail)


def test_a_line_without_end_is_bad_and_not_held(tmp_path: Path) -> None:
    long = "x" * (3 * RECORD_LIMIT)
    found = records(written(tmp_path, f"{HEADER}\n{EXAMPLE}\n2,ana,b,{WHEN},{long}\n{EXAMPLE}\n"), mapping())
    assert bad(found) == [(3, f"is longer than {RECORD_LIMIT:,} characters")]
    assert ids(found) == ["1", None, "1"]
    assert len(found[1].raw) <= 1000
    (last,) = records(written(tmp_path, f"{HEADER}\n{long}"), mapping())
    assert last.content is None


def test_a_null_byte_is_a_character_that_ingest_refuses(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}\n1\x00,ana,bought,{WHEN},x\n{EXAMPLE}\n")
    assert ids(records(path, mapping())) == ["1\x00", "1"]


def test_a_file_without_a_header_is_told_and_can_be_stated(tmp_path: Path) -> None:
    path = written(tmp_path, f"{EXAMPLE}\n")
    with pytest.raises(CommandError, match=r"has no column 'customer', 'event', 'id', 'when'; its first line has '1'"):
        records(path, mapping())
    stated = mapping(more={"csv": {"columns": HEADER.split(",")}})
    assert ids(records(path, stated)) == ["1"]
    with pytest.raises(CommandError, match="has no column 'when'"):
        records(path, mapping(more={"csv": {"columns": ["id", "customer", "event"]}}))


def test_empty_files(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="is empty"):
        records(written(tmp_path, ""), mapping())
    assert records(written(tmp_path, f"{HEADER}\n"), mapping()) == []
    for format_ in ("jsonl", "cloudevents", "segment"):
        told = mapping(format_)
        assert records(written(tmp_path, ""), told) == []
        assert records(written(tmp_path, "\n \n"), told) == []
    with pytest.raises(BrokenFileError, match="is no well-formed XML"):
        records(written(tmp_path, ""), mapping("xes"))


def test_a_column_that_is_there_twice_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="has several columns 'id'"):
        records(written(tmp_path, f"{HEADER},id\n"), mapping())
    # Where nothing is taken from it, it does not matter.
    assert records(written(tmp_path, f"{HEADER},x,x\n"), mapping()) == []


def test_quotes_can_be_stated_to_be_none(tmp_path: Path) -> None:
    path = written(tmp_path, f'{HEADER}\n1,ana,bought,{WHEN},"open\n')
    (record,) = records(path, mapping(more={"csv": {"quote": ""}}))
    assert record.content is not None
    assert record.content["words"] == '"open'


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    table=st.lists(st.lists(CELL, min_size=5, max_size=5), max_size=20),
    delimiter=st.sampled_from(",;\t|"),
    ends=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_was_written_is_read(
    tmp_path: Path, *, table: list[list[str]], delimiter: str, ends: str, quoting: Any, encoding: str
) -> None:
    # A carriage return alone ends a row for readers; csv's writer quotes it only when it quotes all.
    assume(quoting == csv.QUOTE_ALL or not any("\r" in cell for row in table for cell in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ends, quoting=quoting)
    writer.writerows([HEADER.split(","), *table])
    found = records(written(tmp_path, text.getvalue().encode(encoding)), mapping())
    assert [list((record.content or {}).values()) for record in found] == table


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kinds=st.lists(st.sampled_from(["good", "short", "long", "time", "bytes", "quote", "many lines"]), max_size=30))
def test_every_bad_row_is_told_with_its_line_and_every_good_one_is_read(tmp_path: Path, kinds: list[str]) -> None:
    lines, line, expected_bad, expected_good = [HEADER.encode()], 2, [], []
    for number, kind in enumerate(kinds):
        made = {
            "good": f"{number},ana,bought,{WHEN},fine".encode(),
            "short": f"{number},ana".encode(),
            "long": f"{number},ana,bought,{WHEN},fine,more".encode(),
            "time": f"{number},ana,bought,never,fine".encode(),
            "bytes": f"{number},ana,bought,{WHEN},".encode() + b"\xe9",
            "quote": f'{number},ana,bought,{WHEN},"un"closed'.encode(),
            "many lines": f'{number},ana,bought,{WHEN},"one\ntwo"'.encode(),
        }[kind]
        (expected_good if kind in {"good", "many lines"} else expected_bad).append((line, str(number)))
        lines.append(made)
        line += 1 + made.count(b"\n")
    told = mapping(verbatim={"text": "words"}, more={"csv": {"encoding": "utf-8"}})
    found = rows(written(tmp_path, b"\n".join(lines) + b"\n"), told)
    good = [row for row in found if not row.problems]
    assert [(row.record.line, row.interaction and row.interaction.interaction_id) for row in good] == expected_good
    assert [row.record.line for row in found if row.problems] == [each for each, _ in expected_bad]
    for row in found:
        if row.problems and row.interaction:
            assert row.interaction.attributes["import.line"] == str(row.record.line)


# -- gzip ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file.csv.gz", "file.csv"])
def test_gzipped_files_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, gzip.compress(f"{HEADER}\n{EXAMPLE}\n".encode()), name)
    assert ids(records(path, mapping())) == ["1"]


def test_a_file_that_is_cut_off_gives_what_stands_before(tmp_path: Path) -> None:
    lines = "".join(f"{n},ana,bought,{WHEN},{base64.b64encode(str(hash(n)).encode())!r}\n" for n in range(20_000))
    whole = gzip.compress(f"{HEADER}\n{lines}".encode())
    found: list[Record] = []
    with pytest.raises(BrokenFileError, match="cannot be read any further"):
        read_into(found, written(tmp_path, whole[: len(whole) // 2]), mapping())
    assert len(found) > 1000
    assert not bad(found)


# -- JSON ------------------------------------------------------------------------------------------------------------


def test_json_lines_and_bad_lines_among_them(tmp_path: Path) -> None:
    long = json.dumps({"id": "x" * (2 * RECORD_LIMIT)})
    text = f'\ufeff{{"id": 1}}\n\n[1]\n{{"id": 2\n{long}\n"text"\n{{"id": "\\ud800"}}\n{"[" * 9000}\n{{"id": 1.10}}'
    found = records(written(tmp_path, text), mapping("jsonl"))
    assert ids(found) == [1, None, None, None, None, None, None, found[-1].content and found[-1].content["id"]]
    assert str(found[-1].content and found[-1].content["id"]) == "1.10"
    told = bad(found)
    assert [line for line, _ in told] == [3, 4, 5, 6, 7, 8]
    for (_, problem), part in zip(
        told,
        ("is no JSON object", "is no JSON", "is longer than", "is no JSON object", "is no JSON", "is nested too deep"),
        strict=True,
    ):
        assert part in problem


def test_bytes_that_are_no_utf8_make_one_line_bad(tmp_path: Path) -> None:
    found = records(written(tmp_path, b'{"id": 1}\n{"id": "\xff"}\n{"id": 3}\n'), mapping("jsonl"))
    assert ids(found) == [1, None, 3]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.lists(st.dictionaries(st.text('ab"\\[]{},é', max_size=5), JSON, min_size=1, max_size=4), max_size=8),
    form=st.sampled_from(["lines", "array", "spread array", "spread objects"]),
    ascii_=st.booleans(),
    block=st.integers(1, 40),
)
def test_objects_are_found_however_they_are_laid_out(
    tmp_path: Path,
    *,
    content: list[dict[str, Any]],
    form: str,
    ascii_: bool,
    block: int,
) -> None:
    def dumped(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ascii_, indent=indent)

    text = {
        "lines": "\n".join(map(dumped, content)),
        "array": dumped(content),
        "spread array": dumped(content, 2),
        "spread objects": "\n".join(dumped(each, 2) for each in content),
    }[form]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jsonfiles, "_BLOCK", block)
        found = records(written(tmp_path, text), mapping("jsonl"))
    assert [record.content for record in found] == content
    if form == "spread array":
        begins = [n for n, line in enumerate(text.split("\n"), 1) if line == "  {"]
        assert [record.line for record in found] == begins


def test_a_bad_value_of_an_array_is_bad_alone(tmp_path: Path) -> None:
    long = json.dumps("x" * (2 * RECORD_LIMIT))
    text = f'[{{"id": 1}},\n{{"id": nope}}, 7,\n{{"id": {long}}},\n\n{{"id": 5}}] x'
    found = records(written(tmp_path, text), mapping("jsonl"))
    assert ids(found) == [1, None, None, None, 5, None]
    assert [line for line, _ in bad(found)] == [2, 2, 3, 5]
    assert "is longer than" in bad(found)[2][1]
    assert "stands after the array" in bad(found)[3][1]
    cut = records(written(tmp_path, '[{"id": 1},\n{"id": 2'), mapping("jsonl"))
    assert (ids(cut), bad(cut)) == ([1, None], [(2, "is cut off: the file ends within it")])


# -- CloudEvents -----------------------------------------------------------------------------------------------------

EVENT = {"specversion": "1.0", "id": "e1", "source": "/till", "type": "sale", "subject": "ana", "time": WHEN}


def events(tmp_path: Path, content: Any) -> list[Record]:
    told = mapping("cloudevents", drop=["source", "interaction_id", "touchpoint", "customer_id", "occurred_at"])
    return records(written(tmp_path, json.dumps(content)), told)


def test_cloud_events_bring_their_key_time_and_type(tmp_path: Path) -> None:
    told = mapping("cloudevents", drop=["source", "interaction_id", "touchpoint", "customer_id", "occurred_at"])
    for text in (json.dumps(EVENT), json.dumps(EVENT, indent=2), json.dumps([EVENT])):
        (row,) = rows(written(tmp_path, text), told)
        made = row.interaction
        assert made is not None
        assert (made.source, made.interaction_id, made.touchpoint, made.customer.customer_id) == (
            *("/till", "e1", "sale", "ana"),
        )
        assert made.occurred_at.ToJsonString() == WHEN


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"id": ""}, "id: required"),
        ({"source": 7}, "source: required"),
        ({"type": None}, "type: required"),
        ({"specversion": "0.3"}, "specversion: 0.3 is not 1.0"),
        ({"data": {}, "data_base64": ""}, "only one of them"),
        ({"data_base64": "?"}, "data_base64: "),
        ({"data_base64": "eA=="}, "data_base64: is no JSON"),
    ],
)
def test_what_is_no_cloud_event_is_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    found = events(tmp_path, [EVENT, {**EVENT, **changes}])
    assert found[0].content == EVENT
    ((_, problem),) = bad(found)
    assert problem.startswith("is no CloudEvent: ")
    assert told in problem


@pytest.mark.parametrize(
    ("media_type", "binary", "data"),
    [
        (None, b'{"a": 1}', {"a": 1}),
        ("application/vnd.shop+json; charset=utf-8", b"[2]", [2]),
        ("text/plain", b"words", "words"),
        ("image/png", b"\x89PNG", None),
    ],
)
def test_encoded_data_is_decoded(tmp_path: Path, media_type: str | None, binary: bytes, data: Any) -> None:
    event = {**EVENT, "data_base64": base64.b64encode(binary).decode(), "datacontenttype": media_type}
    (found,) = events(tmp_path, event)
    assert found.content is not None
    assert found.content["data"] == data


# -- Segment ---------------------------------------------------------------------------------------------------------

CALL = {"type": "track", "messageId": "m1", "userId": "ana", "event": "Bought", "timestamp": WHEN}


def segment_rows(tmp_path: Path, *calls: Any) -> list[Any]:
    told = mapping("segment", drop=["source", "interaction_id", "customer_id", "touchpoint", "occurred_at"])
    return rows(written(tmp_path, "\n".join(map(json.dumps, calls))), told)


def test_calls_bring_what_the_specification_says(tmp_path: Path) -> None:
    page = {**CALL, "type": "page", "event": None, "name": "Home", "messageId": "m2", "properties": {"a": {"b": 1}}}
    screen = {"type": "screen", "messageId": "m3", "anonymousId": "x7", "timestamp": WHEN}
    found = [row.interaction for row in segment_rows(tmp_path, CALL, page, screen)]
    assert [(made.interaction_id, made.customer.customer_id, made.touchpoint) for made in found] == [
        ("m1", "ana", "Bought"),
        ("m2", "ana", "Home"),
        ("m3", "anonymous:x7", "screen"),
    ]
    assert dict(found[1].attributes) == {"a.b": "1"}
    assert {made.source for made in found} == {"segment"}


@pytest.mark.parametrize(
    ("times", "utc"),
    [
        ({"timestamp": "2026-02-01T10:00:00Z", "originalTimestamp": "2026-02-01T11:00:00Z"}, "2026-02-01T10:00:00Z"),
        (
            {
                "originalTimestamp": "2026-02-01T11:00:00Z",
                "sentAt": "2026-02-01T11:00:05Z",
                "receivedAt": "2026-02-01T10:00:10Z",
            },
            "2026-02-01T10:00:05Z",
        ),
        ({"originalTimestamp": "2026-02-01T11:00:00Z", "sentAt": "soon"}, "2026-02-01T11:00:00Z"),
    ],
)
def test_the_time_is_the_servers_where_that_is_known(tmp_path: Path, times: dict[str, str], utc: str) -> None:
    call = {key: value for key, value in CALL.items() if key != "timestamp"}
    (row,) = segment_rows(tmp_path, {**call, **times})
    assert row.interaction.occurred_at.ToJsonString() == utc


def test_a_call_without_any_time_is_bad(tmp_path: Path) -> None:
    (row,) = segment_rows(tmp_path, {**CALL, "timestamp": None})
    assert [str(problem) for problem in row.problems] == ["occurred_at: nothing in timestamp"]


def test_batches_are_calls_and_what_they_share(tmp_path: Path) -> None:
    first, second = ({key: value for key, value in CALL.items() if key != "timestamp"} for _ in range(2))
    second |= {"messageId": "m2", "originalTimestamp": "2026-02-01T11:00:00Z"}
    batch = {
        "batch": [{**first, "timestamp": WHEN}, second, 7],
        "sentAt": "2026-02-01T11:00:05Z",
        "receivedAt": "2026-02-01T10:00:10Z",
    }
    found = segment_rows(tmp_path, batch)
    assert [row.interaction.interaction_id for row in found] == ["m1", "m2", ""]
    assert found[1].interaction.occurred_at.ToJsonString() == "2026-02-01T10:00:05Z"
    assert "is no Segment call" in str(found[2].problems[0])


def test_who_somebody_is_becomes_a_link_and_no_interaction(tmp_path: Path) -> None:
    identify = {**CALL, "type": "identify", "anonymousId": "x7"}
    found = segment_rows(
        tmp_path, identify, {**identify, "anonymousId": None}, {**CALL, "type": "group"}, {"type": "x"}
    )
    assert [[(link.value, link.customer_id) for link in row.links] for row in found] == [[("x7", "ana")], [], [], []]
    assert [row.skipped for row in found] == ["identify calls", "identify calls", "group calls", ""]
    assert [row.interaction is None for row in found] == [True, True, True, False]
    assert "is no Segment call" in str(found[3].problems[0])


# -- XES -------------------------------------------------------------------------------------------------------------


def log(tmp_path: Path, body: str, *, head: str = XES) -> list[Record]:
    told = mapping("xes", drop=["interaction_id", "touchpoint", "occurred_at"], customer_id="trace.customer")
    return records(written(tmp_path, f"{head}{body}"), told)


def test_events_have_their_attributes_and_those_of_trace_and_log(tmp_path: Path) -> None:
    found = log(
        tmp_path,
        """<global scope="event"><string key="concept:name" value="sample"/></global>
<string key="owner" value="me"/>
<trace><string key="concept:name" value="c1"/>
<event>
<string key="a" value="1"><int key="b" value="2"><boolean key="c" value="true"/></int></string>
<list key="l"><values><string key="x" value="p"/><string key="x" value="q"/></values></list>
<container key="k"><id key="i" value="9"/></container>
</event>
<event><string key="a" value="&lt;&amp;&#233;"/></event></trace>
<trace><event/></trace><event><string key="a" value="loose"/></event></log>""",
    )
    assert [record.content for record in found] == [
        {
            "event": {"a": "1", "a.b": "2", "a.b.c": "true", "l": ["p", "q"], "k.i": "9"},
            "trace": {"concept:name": "c1"},
            "log": {"owner": "me"},
        },
        {"event": {"a": "<&é"}, "trace": {"concept:name": "c1"}, "log": {"owner": "me"}},
        {"event": {}, "trace": {}, "log": {"owner": "me"}},
        {"event": {"a": "loose"}, "trace": {}, "log": {"owner": "me"}},
    ]
    assert [(record.line, record.position) for record in found] == [(6, 1), (11, 2), (12, 1), (12, 1)]


def test_a_prefix_for_the_namespace_is_no_matter(tmp_path: Path) -> None:
    head = '<x:log xmlns:x="http://www.xes-standard.org/">'
    (found,) = log(tmp_path, '<x:trace><x:event><x:string key="a" value="1"/></x:event></x:trace></x:log>', head=head)
    assert found.content is not None
    assert found.content["event"] == {"a": "1"}


def test_gzipped_logs_are_streamed(tmp_path: Path) -> None:
    events_ = "".join(f'<event><string key="n" value="{n}"/></event>' for n in range(5000))
    path = written(tmp_path, gzip.compress(f"{XES}<trace>{events_}</trace></log>".encode()), "log.xes.gz")
    found = records(path, mapping("xes", drop=["interaction_id"]))
    assert [record.content and record.content["event"]["n"] for record in found] == [str(n) for n in range(5000)]


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE log [<!ENTITY x SYSTEM "file:///etc/hostname">]>\n<log>',
        '<!DOCTYPE log [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x">%x;]>\n<log>',
        '<!DOCTYPE log SYSTEM "http://127.0.0.1:9/log.dtd">\n<log>',
        '<!DOCTYPE log [<!ENTITY a "aaaaaaaaaa">'
        + "".join(f'<!ENTITY {x} "{f"&{y};" * 10}">' for y, x in zip("abcdefghi", "bcdefghij", strict=True))
        + "]>\n<log>",
    ],
    ids=["file", "parameter entity", "external type", "billion laughs"],
)
def test_documents_that_declare_anything_are_refused(tmp_path: Path, head: str) -> None:
    with pytest.raises(BrokenFileError, match="declares a document type or entities, which no log needs: refused"):
        log(tmp_path, '<trace><event><string key="a" value="&x;&j;"/></event></trace></log>', head=head)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<trace><event></trace></log>", "line 3: is no well-formed XML: mismatched tag"),
        ("<trace><event/></trace>", "is no well-formed XML: no element found"),
        ("<trace>" + "<container key='a'>" * 100, "line 3: is no XES: elements stand more than 64 deep"),
    ],
)
def test_a_broken_log_is_told_with_its_line(tmp_path: Path, body: str, told: str) -> None:
    with pytest.raises(BrokenFileError, match=told):
        log(tmp_path, body)


def test_what_stands_before_the_break_is_given(tmp_path: Path) -> None:
    path = written(tmp_path, f"{XES}<trace><event/><event/></wrong>")
    found: list[Record] = []
    with pytest.raises(BrokenFileError):
        read_into(found, path, mapping("xes", drop=["interaction_id"]))
    assert len(found) == 2


def test_another_document_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(BrokenFileError, match="its root is html, not log"):
        log(tmp_path, "<html></html>", head="")


def test_an_event_that_is_too_large_or_without_keys_is_bad_alone(tmp_path: Path) -> None:
    large = "".join(f'<string key="k{n}" value="{"x" * 100_000}"/>' for n in range(12))
    found = log(
        tmp_path,
        f'<trace>\n<event>{large}</event>\n<event><string value="1"/></event>\n<event/></trace></log>',
    )
    assert bad(found) == [(4, f"is longer than {RECORD_LIMIT:,} characters"), (5, "line 5: a string has no key")]
    assert found[2].content is not None


def test_a_text_without_end_is_not_held(tmp_path: Path) -> None:
    endless = "x" * (20 * 1024 * 1024)
    with pytest.raises(BrokenFileError, match="holds a text of more than"):
        log(tmp_path, f'<trace><event><string key="a" value="{endless}"/></event></trace></log>')
