"""Names that a person gives, refused only where all that there are were looked at; and how answers are shown."""

from contextlib import asynccontextmanager
from io import StringIO
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import typer
from rich.console import Console

from recorrido.actions.v1.action_pb2 import Target
from recorrido.actions.v1.actions_service_pb2 import Action
from recorrido.inference.v1.analysis_pb2 import Analysis
from recorrido.inference.v1.inference_service_pb2 import Correction
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.journey_map_pb2 import Metric
from services.actions.domain.webhooks import DELIVERED
from services.cli import naming, show
from services.cli.actions import _target
from services.cli.clients import Addresses
from services.cli.correct import _stays
from services.cli.failures import CommandError
from services.cli.importing import recording
from services.cli.journeymap import load
from services.cli.journeys import Rule, _signal_table
from services.cli.options import event_types
from services.cli.pictures.drawing import in_two_lines, shortened_path
from services.cli.pictures.flowchart import endings
from services.cli.webhooks import action_type
from services.journey.domain.shifts import SHIFT_RULES
from services.journey.domain.signals import BAD_MOMENT, RECOVERY_FAILED
from services.journey.domain.watching import ABOUT_TO_FALL, COVERAGE_LOST, TOUCHPOINT_SILENT


@pytest.mark.parametrize("left_out", [0, 1])
async def test_a_name_among_more_than_are_told_is_not_called_unknown(
    monkeypatch: pytest.MonkeyPatch, left_out: int
) -> None:
    async def scores(*_: Any, **__: Any) -> pb.GetScoresResponse:
        return pb.GetScoresResponse(groups=[pb.ScoreGroup(keys=["shop"])], left_out=left_out)

    @asynccontextmanager
    async def journey(_: Any) -> Any:
        yield SimpleNamespace(GetScores=scores)

    monkeypatch.setattr(naming.clients, "journey", journey)
    asked = naming.check_selection(Addresses.configured(), pb.Selection(source="small shop"), "")
    if left_out:
        await asked
        return
    with pytest.raises(naming.UnknownNameError, match="no source 'small shop' is known"):
        await asked


@pytest.mark.parametrize(("value", "shown"), [(79.6, "79.6"), (80.0, "80"), (78.4, "78")])
def test_what_misses_its_target_by_little_does_not_look_as_if_it_were_met(value: float, shown: str) -> None:
    found = pb.ExpectationResult(
        metric=Metric.METRIC_CSAT, target=80, value=value, state=pb.ExpectationState.EXPECTATION_STATE_MISSED
    )
    assert show.expected([found]) == [f"✗ CSAT {shown} of 80"]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_where_columns_would_be_cut_each_row_is_a_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = show.table("touchpoint", "customers#", "need", "where", "example~")
    example = "It came two days late and nobody knew where it was, until I went there and asked for it myself."
    lines.add_row("delivery", "1,234", "delivery/speed/promised_date", "at the customer's door", show.plain(example))
    show.console().print(show.filled(lines))
    printed = capsys.readouterr().out
    assert "delivery/speed/promised_date" in printed
    assert "1,234" in printed
    assert "…" not in printed, "words go on in the next line"
    assert printed.startswith(" touchpoint  customers  need") is (columns == "120")
    assert " ".join(printed.split()).endswith("asked for it myself.")


def test_where_there_is_no_room_the_columns_that_matter_least_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = show.table("id", "customers#", "need~", "words~", title="Points", spared=("id", "customers"))
        lines.add_row(str(UUID(int=1)), "1,234", "information/order_facts/change_possible", show.plain("Late. " * 12))
        show.console().print(show.filled(lines))
        told = capsys.readouterr().out
        assert all(len(line) <= columns for line in told.splitlines())
        assert "…" not in told
        return told.splitlines()

    assert printed(160)[1].split() == ["id", "customers", "need", "words"]
    assert str(UUID(int=1)) in printed(160)[2]
    narrow = printed(64)
    assert narrow[1].split() == ["customers", "need", "words"]
    assert narrow[-1] == "not shown for want of room: id; a wider terminal or --json tells"
    # A path goes on after one of its parts.
    assert narrow[2].split()[1].endswith("/")
    assert printed(40)[1].split() == ["need", "words"]
    # Where even that is too wide, each row is a block, which has room for all.
    blocks = printed(24)
    assert {"id", "customers", "need", "words"} <= {line.split()[0] for line in blocks if line.strip()}
    assert not any("not shown" in line for line in blocks)


def test_a_narrow_table_of_signals_tells_whole_customers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    customer_id = "0199aaf0-7a11-7c55-8a3e-5a0d9c2b6f41"
    reasons = ["CSAT 2 of 5", "said to have called three times and to have waited for an hour each time"]
    one = pb.Signal(customer_id=customer_id, signal_id=str(UUID(int=1)), touchpoint="parcel_late", reasons=reasons)
    out = show.console()
    out.print(show.filled(_signal_table(pb.ListSignalsResponse(signals=[one]), out.width)))
    head, *lines = capsys.readouterr().out.splitlines()
    start = head.index("customer")
    assert "".join(line[start:].split("  ")[0].strip() for line in lines) == customer_id


def test_the_rules_that_can_be_asked_for_are_those_that_there_are() -> None:
    rules = {BAD_MOMENT, RECOVERY_FAILED, ABOUT_TO_FALL, TOUCHPOINT_SILENT, COVERAGE_LOST, *SHIFT_RULES}
    assert {each.value for each in Rule} == rules


def test_a_webhook_can_be_told_of_what_is_delivered_and_of_nothing_else() -> None:
    names = [each.type_name for package in ("ingest", "journey", "actions") for each in event_types(package)]
    for name in names:
        if name in DELIVERED:
            assert action_type(name) == action_type(name.rpartition(".")[2]) == name
        else:
            with pytest.raises(typer.BadParameter, match="there are ActionOpened"):
                action_type(name)
    assert action_type("Action*") == action_type("recorrido.actions.v1.Action*") == "recorrido.actions.v1.Action*"


def test_what_is_too_long_for_a_picture_goes_on_in_a_second_line_or_keeps_its_end() -> None:
    assert in_two_lines("Survey after the delivery", 168, 12, bold=True) == ["Survey after the", "delivery"]
    assert in_two_lines("Chat", 168, 12, bold=True) == ["Chat"]
    assert in_two_lines("", 168, 12) == [""]
    long = in_two_lines("What nobody would ever call a touchpoint of a journey", 168, 12, bold=True)
    assert (len(long), long[1][-1]) == (2, "…")
    assert shortened_path("store/waiting/checkout_queue", 130, 11) == "…/checkout_queue"
    assert shortened_path("delivery/speed", 130, 11) == "delivery/speed"
    assert shortened_path("store/averylongnameofaneedindeed", 130, 11) == "…ngnameofaneedindeed"


async def test_a_map_that_nobody_knows_is_told_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def maps(*_: Any, **__: Any) -> pb.ListJourneyMapsResponse:
        found = pb.ListJourneyMapsResponse()
        found.maps.add().map.map_id = "shop"
        return found

    @asynccontextmanager
    async def journey(_: Any) -> Any:
        yield SimpleNamespace(ListJourneyMaps=maps)

    monkeypatch.setattr(naming.clients, "journey", journey)
    await naming.check(Addresses.configured(), [], "", "shop")
    with pytest.raises(naming.UnknownNameError, match="no journey map 'shp' is known; did you mean shop"):
        await naming.check(Addresses.configured(), [], "", "shp")


def test_a_target_without_a_touchpoint_is_of_no_map() -> None:
    assert _target(Target(metric="pain_share", need_path="price", map_id="shop")) == "pain_share price"
    assert _target(Target(metric="csat", touchpoint="till", map_id="shop")) == "csat till of the map shop"


@pytest.mark.parametrize(
    ("title", "touchpoint", "shown"),
    [
        ("Bad moment at parcel_late: CSAT 2 of 5", "parcel_late", "Bad moment at Delivery: CSAT 2 of 5"),
        ("Bad moment at parcel_late", "parcel", "Bad moment at parcel_late"),
        ("20 customers: parcel_late and delivery/speed", "parcel_late", "20 customers: Delivery and delivery/speed"),
        ("Touchpoint silent at chat: chat: nothing for 4 days", "chat", "Touchpoint silent at Delivery: chat: nothing"),
    ],
)
def test_a_title_names_the_touchpoint_as_the_map_does(title: str, touchpoint: str, shown: str) -> None:
    action = Action(title=title, touchpoint=touchpoint, touchpoint_name="Delivery", signal_id="s")
    assert show.title(action).plain.startswith(shown)
    action.signal_id = ""
    assert show.title(action).plain == title, "a person's own words"


def test_a_shipped_map_is_read_by_its_name() -> None:
    assert load("ecommerce").map_id == "ecommerce"
    with pytest.raises(CommandError, match="no such file; shipped maps are ecommerce, omnichannel"):
        load("nothing")


def test_of_one_there_is_no_plural() -> None:
    assert [show.counted(number, "mention") for number in (0, 1, 1000)] == ["0 mentions", "1 mention", "1,000 mentions"]


def test_of_endings_that_there_are_none_of_nothing_is_told() -> None:
    flow = pb.Flow(cases=4, reached_goal=3, dropped_off=1)
    assert endings(flow, show.count) == "3 reached a goal, 1 dropped off"


def test_what_is_told_to_be_unchanged_is_what_was_not_corrected() -> None:
    now = Analysis(language="en", sentiment=1, point=1, emotion=1, intent=1, effort=1, urgency=1)
    given = {"sentiment": 1, "emotion": 1, "intent": 1, "effort": 1, "urgency": 1, "language": "en"}
    told = _stays(Correction(**given), now)
    assert told == "Unchanged: point pain, need none. Correct these too with --point, --need."
    assert _stays(Correction(**given, point=1, need_path=""), now) == "", "nothing is left to correct"


def test_a_pipe_is_told_at_once_and_then_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> list[str]:
        file = StringIO()
        with recording.Steps(Console(file=file)) as steps:
            first = steps.add_task("recording", total=4)
            steps.update(first, advance=1)
            steps.update(first, advance=1)
            steps.update(first, advance=2)
            steps.update(steps.add_task("placing", total=None), completed=3)
        return file.getvalue().split("\n")

    assert list(filter(None, told())) == ["recording 1 of 4 · 0 s"]
    monkeypatch.setattr(recording, "TOLD_EVERY_S", 0)
    # Where all is done there is nothing to tell.
    steps = ["recording 1 of 4 · 0 s", "recording 2 of 4 · 0 s", "placing 3 · 0 s"]
    assert list(filter(None, told())) == steps
