"""Every command against the real services, with a small sample company in them."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import pytest_asyncio
from playwright.async_api import Page, async_playwright

from infra.local import directory
from infra.local import ports as port_numbers
from recorrido.actions.v1.actions_service_pb2 import ListActionsRequest
from recorrido.inference.v1.inference_service_pb2 import ListAnalysesRequest
from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import actions, correct, flow, journeys, local, machine, sample, show
from services.cli.clients import Addresses
from services.cli.journeymap import SHIPPED
from services.cli.pictures import flowchart
from tests.support.cli import ROOT, Result, answer, environment, recorrido, start
from tests.support.cluster import Cluster, running
from tests.support.wait import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

CUSTOMERS = 25
#: As Debian installs it.
CHROMIUM = Path("/usr/bin/chromium")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with running(data=tmp_path_factory.mktemp("data")) as started:
        loaded = await recorrido(started, "import", "sample", "--customers", str(CUSTOMERS), within_s=120)
        assert loaded.code == 0, loaded
        yield started


@pytest.fixture(scope="module")
def customer_id() -> str:
    """Return the id of the customer who did the most."""
    busiest = max(sample.generate(CUSTOMERS), key=len)
    return busiest[0].customer.customer_id


async def test_starting_leaves_no_error_in_the_log_of_postgresql(cluster: Cluster) -> None:
    log = (cluster.data / "log/postgres.log").read_text(encoding="utf-8")
    assert [line for line in log.splitlines() if "ERROR" in line] == []


# -- reading ---------------------------------------------------------------------------------------------------------


async def test_overview_counts_what_was_loaded(cluster: Cluster) -> None:
    told = [each for customer in sample.generate(CUSTOMERS) for each in customer]
    found = await answer(cluster, "overview")
    assert int(found["interactions"]) == len(told)
    assert int(found["customers"]) == CUSTOMERS
    assert int(found["verbatims"]) == sum(each.HasField("verbatim") for each in told)
    assert int(found["analyzed"]) + int(found["analysisFailed"]) == int(found["verbatims"])
    text = (await recorrido(cluster, "overview")).out
    assert f"{len(told):,}" in text


async def test_customer_tells_the_whole_journey_in_order(cluster: Cluster, customer_id: str) -> None:
    found = await answer(cluster, "customer", customer_id)
    told = next(c for c in sample.generate(CUSTOMERS) if c[0].customer.customer_id == customer_id)
    assert found["mapId"] == "omnichannel"
    assert [e["interaction"]["interactionId"] for e in found["entries"]] == [e.interaction_id for e in told]
    assert all(e["stageId"] for e in found["entries"] if e["interaction"]["touchpoint"] != "gift_finder_beta")
    text = (await recorrido(cluster, "customer", customer_id)).out
    assert text.count("\n") >= len(told)
    first = (await recorrido(cluster, "customer", customer_id, "--limit", "2")).out
    assert "the first 2 are shown" in first
    assert len((await answer(cluster, "customer", customer_id, "--limit", "2"))["entries"]) == 2


async def test_analyses_tell_the_words_that_they_are_about(cluster: Cluster, customer_id: str) -> None:
    said = [each for customer in sample.generate(CUSTOMERS) for each in customer if each.verbatim.text]
    mine = [each.verbatim.text for each in said if each.customer.customer_id == customer_id]
    text = (await recorrido(cluster, "analyses", customer_id, COLUMNS="500")).out
    assert mine
    assert [words for words in mine if text.count(words) != 1] == []


async def test_answers_are_as_of_a_time(cluster: Cluster, customer_id: str) -> None:
    before = "2020-01-01T00:00:00Z"
    assert (await answer(cluster, "overview", "--as-of", before))["interactions"] == "0"
    assert (await answer(cluster, "scores", "--as-of", before))["total"]["interactions"] == "0"
    assert (await answer(cluster, "points", "--as-of", before))["points"] == []
    assert (await answer(cluster, "signals", "--as-of", before))["signals"] == []
    unknown = await recorrido(cluster, "customer", customer_id, "--as-of", before)
    assert unknown.code == 1
    for question in ("overview", "scores", "points", "signals", "ladder"):
        note = (await recorrido(cluster, question, "--as-of", before)).err
        assert note.startswith("note: as of 2020-01-01 00:00 UTC nothing of it was recorded; --as-of is about when")
        assert (await recorrido(cluster, question, "--as-of", "2100-01-01")).err == ""


async def test_what_of_the_sample_is_not_there_yet_is_loaded_by_the_next_run(cluster: Cluster) -> None:
    why = await local._why_sample(Addresses.local(environment(cluster.ports)))
    assert "its loading was cut off" in why, "the store is not empty"


async def test_the_ladder_begins_when_somebody_was_there(cluster: Cluster) -> None:
    text = (await recorrido(cluster, "ladder")).out
    months = re.findall(r"^ (\d{4}-\d\d)-01 ", text, re.MULTILINE)
    assert months[:2] == ["2026-07", "2026-08"]
    assert int((await answer(cluster, "ladder"))["periods"][0]["levels"][0]["customers"]) == 0


async def test_the_ladder_ends_with_the_last_period_in_which_anything_happened(cluster: Cluster) -> None:
    def months(text: str) -> list[str]:
        return re.findall(r"^ (\d{4}-\d\d)-01 ", text, re.MULTILINE)

    text = (await recorrido(cluster, "ladder", "--as-of", "2027-03-01")).out
    assert months(text)[-1] == "2026-09"
    assert "nobody came or moved since 2026-10-01; --to shows the time since" in text
    asked = (await recorrido(cluster, "ladder", "--to", "2027-01-01")).out
    assert (months(asked)[-1], "--to shows" in asked) == ("2026-12", False)


async def test_scores_are_of_a_map_and_a_time(cluster: Cluster) -> None:
    found = await answer(cluster, "scores")
    assert found["total"]["nps"]["count"] != "0"
    assert "relationship_survey" in {each["touchpointId"] for each in found["touchpoints"]}
    other = await answer(cluster, "scores", "--map", "ecommerce")
    assert (other["mapId"], other["total"]) == ("ecommerce", found["total"])
    half = await answer(cluster, "scores", "--from", "2026-08-15", "--to", "2026-09-01T00:00:00+02:00")
    assert 0 < int(half["total"]["interactions"]) < int(found["total"]["interactions"])
    text = (await recorrido(cluster, "scores")).out
    assert "Relationship survey" in text
    interval = found["total"]["nps"]["interval"]
    assert (
        f"{interval['low']:+.0f} to {interval['high']:+.0f}" in (await recorrido(cluster, "scores", COLUMNS="300")).out
    )


async def test_of_chosen_interactions_nothing_is_told_about_the_rest(cluster: Cluster) -> None:
    wide = {"COLUMNS": "300"}
    text = (await recorrido(cluster, "scores", "--touchpoint", "delivery_survey", **wide)).out
    assert [line.split()[:1] for line in text.splitlines() if " of " in line][1:] == [["Survey"]]
    assert "relationship_survey" not in text
    assert "unasked" in (await recorrido(cluster, "scores", **wide)).out
    of_a_persona = (await recorrido(cluster, "scores", "--persona", "busy_parent", **wide)).out
    assert ("delivery_survey" in of_a_persona, "unasked" in of_a_persona) == (True, False)


async def test_points_and_signals_are_ranked_and_limited(cluster: Cluster) -> None:
    pains = await answer(cluster, "points", "--kind", "pain", "--limit", "1000")
    assert {each["kind"] for each in pains["points"]} == {"POINT_KIND_PAIN"}
    ranks = [(not each["needPath"], -int(each["customers"])) for each in pains["points"]]
    assert ranks == sorted(ranks)
    assert (await answer(cluster, "points", "--kind", "pain", "--limit", "3"))["points"] == pains["points"][:3]
    shown = (await recorrido(cluster, "points", "--limit", "4")).out.splitlines()
    told = itertools.takewhile(lambda each: "not known" not in each and "What moves" not in each, shown[1:])
    kinds = [line.split()[0] for line in told]
    # What hurts is first, and is there however much delights.
    assert list(dict.fromkeys(kinds)) == ["pain", "itch", "delight"]
    assert kinds.count("pain") == min(4, [unknown for unknown, _ in ranks].count(False))
    # What nobody knows the need of is a line of its own, for each kind.
    everything = await answer(cluster, "points", "--limit", "1000")
    assert everything["unknown"]
    assert [line.split()[4] for line in shown if "need not known" in line] == [
        each["customers"] for each in everything["unknown"]
    ]
    assert len(everything["unknown"]) == len({each["kind"] for each in everything["points"] if not each["needPath"]})
    signals = (await answer(cluster, "signals", "--limit", "3"))["signals"]
    assert len(signals) == 3
    of_one = (await answer(cluster, "signals", "--customer", signals[0]["customerId"]))["signals"]
    assert {each["customerId"] for each in of_one} == {signals[0]["customerId"]}
    assert signals[0]["signalId"] in (await recorrido(cluster, "signals")).out
    narrow = (await recorrido(cluster, "signals", COLUMNS="110")).out
    assert signals[0]["signalId"][:8] in narrow
    assert signals[0]["signalId"] not in narrow
    assert "raised (UTC)" in narrow


async def test_flow_tells_how_journeys_run(cluster: Cluster, tmp_path: Path) -> None:
    told = [each for customer in sample.generate(CUSTOMERS) for each in customer]
    found = await answer(cluster, "flow", "--variants", "3")
    assert int(found["flow"]["interactions"]) == len(told)
    assert int(found["flow"]["customers"]) == CUSTOMERS
    assert sum(int(each["count"]) for each in found["flow"]["steps"]) == len(told)
    assert len(found["flow"]["variants"]) == 3
    file = tmp_path / "flow.svg"
    drawn = await recorrido(cluster, "flow", "--by", "stage", "--case", "customer", "--svg", str(file))
    assert drawn.code == 0, drawn
    root = ET.parse(file).getroot()
    assert [child.tag.rpartition("}")[2] for child in root][:2] == ["title", "desc"]
    named = {"".join(each.itertext()) for each in root.iter()}
    steps = (await answer(cluster, "flow", "--by", "stage", "--case", "customer"))["flow"]["steps"]
    assert all(step["name"] in named for step in steps)
    dense = tmp_path / "dense.svg"
    assert (await recorrido(cluster, "flow", "--map", "omnichannel", "--svg", str(dense))).code == 0
    _lie_apart(dense)
    await _lines_are_left_alone(dense)
    text = (await recorrido(cluster, "flow", "--compare-to", "2000-01-01", "--by", "stage")).out
    assert "Compared with 0 other cases" in text
    for arguments, field in (
        (("--persona", "nobody"), "filter.selection.persona_id"),
        (("--goal", "none"), "filter.goal_id"),
        (("--compare-persona", "nobody"), "compare_with.selection.persona_id"),
    ):
        refused = await recorrido(cluster, "flow", *arguments)
        assert refused.code == 1
        assert field in refused.err
    assert (await recorrido(cluster, "flow", "--outcome", "great")).code == 2
    nowhere = await recorrido(cluster, "flow", "--svg", str(tmp_path / "none" / "flow.svg"))
    assert nowhere.code == 1
    assert "cannot be written" in nowhere.err


#: A line of a flow: out of a step, up or down along its upright, and into a step.
_LINE = re.compile(r"M(\S+),(\S+) H\S+ Q(\S+),\S+ \S+ V\S+ Q\S+,(\S+) \S+ H(\S+)")


def _lie_apart(file: Path) -> None:
    """No line of a dense flow lies on another, and each ends where no other does."""
    root = ET.parse(file).getroot()
    told = [found.groups() for each in root.iter() if (found := _LINE.fullmatch(each.get("d", "")))]
    lines = [tuple(map(float, each)) for each in told]
    assert len(lines) > 10
    for n, (x, y, upright, end, _) in enumerate(lines):
        for other_x, other_y, other_upright, other_end, _ in lines[:n]:
            beside = max(y, end) < min(other_y, other_end) or min(y, end) > max(other_y, other_end)
            assert upright != other_upright or beside
            assert x != other_x or not {y, end} & {other_y, other_end}


async def _lines_are_left_alone(file: Path) -> None:
    """In a real browser: who points at a step, or comes to it with the keyboard, sees its lines alone."""
    async with browser_tab() as (tab, problems):
        await tab.goto(file.as_uri())
        seen = """(n) => [...document.querySelectorAll('.line')]
            .map(line => [line.matches('.of' + n), getComputedStyle(line).opacity])"""
        assert {opacity for _, opacity in await tab.evaluate(seen, 4)} == {"1"}
        await tab.hover(".step4")
        assert {tuple(each) for each in await tab.evaluate(seen, 4)} == {(True, "1"), (False, "0.07")}
        await tab.mouse.move(1, 1)
        await tab.focus(".step5")
        assert {tuple(each) for each in await tab.evaluate(seen, 5)} == {(True, "1"), (False, "0.07")}
        assert problems == []


async def test_the_heading_of_a_picture_of_few_steps_has_room_in_it(tmp_path: Path) -> None:
    many = 1_234_567
    flow = pb.Flow(cases=many, reached_goal=many, dropped_off=many, no_goal=many, open=many)
    flow.steps.add(id="checkout", name="Checkout")
    picture = tmp_path / "flow.svg"
    picture.write_text(flowchart.svg(pb.GetFlowResponse(flow=flow, map_id="shop")), encoding="utf-8")
    async with browser_tab() as (tab, _):
        await tab.goto(picture.as_uri())
        ends = "[...document.querySelectorAll('text')].map(each => each.getBBox().x + each.getBBox().width)"
        assert max(await tab.evaluate(ends)) <= await tab.evaluate("document.documentElement.viewBox.baseVal.width")


@contextlib.asynccontextmanager
async def browser_tab() -> AsyncIterator[tuple[Page, list[str]]]:
    """A tab of a real browser, and what it complains of."""
    if not CHROMIUM.exists():  # noqa: ASYNC240 - once, before anything waits
        pytest.skip(f"no browser: {CHROMIUM} is missing (Debian's package chromium)")
    async with async_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = await play.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        tab = await browser.new_page(viewport={"width": 1400, "height": 1000})
        problems: list[str] = []
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("requestfailed", lambda request: problems.append(request.url))
        yield tab, problems
        await browser.close()


async def test_coverage_names_what_is_silent_and_what_is_on_no_map(cluster: Cluster) -> None:
    told = [each for customer in sample.generate(CUSTOMERS) for each in customer]
    found = await answer(cluster, "coverage")
    counted = sum(int(t["interactions"]) for t in found["touchpoints"] + found["offMap"])
    assert counted == len(told) == int(found["interactions"])
    assert [each["touchpoint"] for each in found["offMap"]] == ["kiosk_beta"]
    states = [each["hearing"] for each in found["touchpoints"]]
    assert found["all"]["silent"] == states.count("HEARING_SILENT")
    text = (await recorrido(cluster, "coverage")).out
    assert "kiosk_beta" in text
    assert "moments of truth" in text
    unheard, silent = (states.count(f"HEARING_{name}") for name in ("UNHEARD", "SILENT"))
    assert f"{unheard} unheard (something happens, and nobody tells), {silent} silent (nothing happens)" in text
    silent = await answer(cluster, "coverage", "--to", "2000-01-01")
    assert silent["all"]["silent"] == silent["all"]["touchpoints"] == len(found["touchpoints"])


async def test_a_map_is_drawn_with_what_really_happens_on_it(cluster: Cluster, tmp_path: Path) -> None:
    page, picture = tmp_path / "map.html", tmp_path / "map.svg"
    drawn = await recorrido(cluster, "map", "--map", "omnichannel", "--html", str(page), "--svg", str(picture))
    assert (drawn.code, drawn.err) == (0, "")
    found = await answer(cluster, "coverage", "--map", "omnichannel")
    root = ET.parse(picture).getroot()
    assert [child.tag.rpartition("}")[2] for child in root][:2] == ["title", "desc"]
    titles = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}title")]
    for number, touchpoint in enumerate(found["touchpoints"], 1):
        (told,) = [each for each in titles if each.startswith(f"{number} {touchpoint['name']}")]
        assert f"{int(touchpoint['interactions']):,} interactions" in told
        for expected in touchpoint["expected"]:
            mark = {"MET": "✓", "MISSED": "✗", "NOT_KNOWN": "?"}[expected["state"].removeprefix("EXPECTATION_STATE_")]
            assert f"{mark} {expected['metric'].removeprefix('METRIC_')} " in told
            assert f" of {expected['target']:g}" in told
    counts = [found["all"][each] for each in ("met", "missed", "notKnown")]
    assert sum(counts) == sum(len(each["expected"]) for each in found["touchpoints"]) == 5
    text = (await recorrido(cluster, "coverage", "--map", "omnichannel")).out
    assert f"of 5 scores that the map expects {counts[0]} are met, {counts[1]} missed" in text
    scores = await answer(cluster, "scores", "--map", "omnichannel")
    of_map = {each["touchpointId"]: each["expected"] for each in scores["touchpoints"] if each["touchpointId"]}
    assert of_map == {each["touchpointId"]: each["expected"] for each in found["touchpoints"]}
    assert "of what is expected" in (await recorrido(cluster, "scores", "--map", "omnichannel")).out
    content = page.read_text(encoding="utf-8")
    assert "kiosk_beta" in content
    # Nothing is fetched from anywhere.
    assert not re.search(r"(src|href)=|url\(|@import", content)
    assert (await recorrido(cluster, "map", "--map", "none", "--svg", str(picture))).code == 1
    assert (await recorrido(cluster, "map", "--svg", str(picture), "list")).code == 2
    await _looked_at(page)


async def _looked_at(page: Path) -> None:
    """Look at a page in a real browser: whole, legible, reached by keyboard, and fit to print."""
    async with browser_tab() as (tab, problems):
        await tab.goto(page.as_uri())
        # What a screen reader is told of the pictures, and no text outside of them or of a card.
        assert await tab.get_by_role("img").count() == 2
        assert await tab.get_by_role("img", name="stages 6 to 9 of 9").count() == 1
        assert await tab.get_by_role("table").count() == 3
        # All of it is seen without scrolling to the side, in letters that can be read.
        wide = "[...document.querySelectorAll('figure')].map(f => f.scrollWidth - f.clientWidth)"
        assert await tab.evaluate(wide) == [0, 0]
        scaled = "[...document.querySelectorAll('figure svg')].map(s => s.clientWidth / s.viewBox.baseVal.width)"
        assert min(await tab.evaluate(scaled)) > 0.9
        outside = await tab.evaluate("""() => {
            const out = [];
            for (const text of document.querySelectorAll('figure svg text')) {
                const svg = text.ownerSVGElement.getBoundingClientRect();
                const box = text.getBoundingClientRect();
                const frame = text.parentElement.querySelector(':scope > rect')?.getBoundingClientRect() ?? svg;
                const holder = text.parentElement.tagName === 'g' && frame.height > 60 ? frame : svg;
                if (box.left < holder.left || box.right > holder.right || box.bottom > holder.bottom)
                    out.push(text.textContent);
            }
            return out;
        }""")
        assert outside == []
        await tab.keyboard.press("Tab")
        assert await tab.evaluate("document.activeElement.tagName") == "FIGURE"
        await tab.screenshot(path=str(page.with_suffix(".png")), full_page=True)
        # A telephone scrolls what is wide, and not the page; what is dark there is light on paper.
        await tab.set_viewport_size({"width": 400, "height": 800})
        assert await tab.evaluate("document.documentElement.scrollWidth") == 400
        ground = "getComputedStyle(document.body).backgroundColor"
        await tab.emulate_media(color_scheme="dark")
        assert await tab.evaluate(ground) == "rgb(22, 24, 27)"
        await tab.emulate_media(media="print")
        assert await tab.evaluate(ground) == "rgb(255, 255, 255)"
        assert await tab.evaluate("getComputedStyle(document.querySelector('figure')).overflowX") == "visible"
        assert len(await tab.pdf(prefer_css_page_size=True)) > 10_000
        assert problems == []


async def test_report_has_everything_and_where_to_call(cluster: Cluster) -> None:
    found = await answer(cluster, "report")
    assert found["overview"]["customers"] == str(CUSTOMERS)
    assert found["scores"]["total"]["interactions"] == found["overview"]["interactions"]
    assert found["pains"]["points"]
    assert int(found["openRecoveries"]["total"]) > 0
    text = (await recorrido(cluster, "report")).out
    for part in ("ingest", "inference", "journey", "actions", "nats", "eventstore"):
        assert cluster.address(part) in text
    top, _, unknown = text.partition("Top pain points")[2].partition("Open recoveries")[0].partition("need not known: ")
    assert "not known" not in top
    points = (await answer(cluster, "points", "--kind", "pain", "--limit", "1000"))["points"]
    assert bool(unknown) == any(not each["needPath"] for each in points)


async def test_analyze_tells_what_texts_mean(cluster: Cluster) -> None:
    found = await recorrido(cluster, "analyze", "The parcel came a week late.", " ", "--json")
    assert found.json["results"][0]["analysis"]["model"]
    assert found.json["results"][1]["problem"]["reason"]
    assert found.code == 1
    assert "1 of 2 not analysed" in found.err
    assert "came a week late" in (await recorrido(cluster, "analyze", "The parcel came a week late.")).out


async def test_a_file_of_which_nothing_can_be_analysed_tells_why(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "long"
    file.write_text("late " * 20_000)
    told = _one_line(await recorrido(cluster, "analyze", "--file", str(file)), 1)
    assert "1 texts, 1 of them not analysed: at most 16384 bytes" in told


# -- maps ------------------------------------------------------------------------------------------------------------


async def test_maps_are_published_listed_and_shown(cluster: Cluster, tmp_path: Path) -> None:
    assert {each["map"]["mapId"] for each in (await answer(cluster, "map", "list"))["maps"]} >= {
        "ecommerce",
        "omnichannel",
    }
    shown = (await answer(cluster, "map", "show", "omnichannel"))["published"]
    assert shown["map"]["stages"][1]["touchpoints"][0]["momentOfTruth"] is True
    assert "till_*" in (await recorrido(cluster, "map", "show", "omnichannel")).out

    # The same again is no new version; another content is.
    again = await answer(cluster, "map", "publish", "ecommerce")
    assert (again["published"]["version"], again["published"]["actor"]) == (1, "recorrido import")
    changed = tmp_path / "map.yaml"
    text = (SHIPPED / "ecommerce.yaml").read_text(encoding="utf-8")
    changed.write_text(text.replace("E-commerce order", "Another name"), encoding="utf-8")
    published = await recorrido(cluster, "map", "publish", str(changed))
    assert (published.code, published.out) == (0, "ecommerce: version 2 is published\n")
    first = await answer(cluster, "map", "show", "ecommerce", "--version", "1")
    assert first["published"]["map"]["name"] == "E-commerce order"


async def test_a_bad_map_is_refused_with_every_place(cluster: Cluster, tmp_path: Path) -> None:
    bad = tmp_path / "map.yaml"
    bad.write_text(
        "map_id: 12\nnam: x\nmapping_rules: [{channel: wb}]\n"
        "stages: [{stage_id: a, name: A, touchpoints: [{touchpoint_id: x, name: X, momentoftruth: true}, 3]}]\n",
        encoding="utf-8",
    )
    refused = await recorrido(cluster, "map", "publish", str(bad))
    assert refused.code == 1
    for told in (
        "unknown key 'nam'; did you mean name?",
        "map_id: expected text, not 12; put it in quotes",
        "stages[0].touchpoints[0]: unknown key 'momentoftruth'; did you mean moment_of_truth?",
        "stages[0].touchpoints[1]: expected keys and values, not 3",
        "mapping_rules[0].touchpoint_id: is missing",
        "mapping_rules[0].channel: 'wb' is no channel",
    ):
        assert told in refused.err
    bad.write_text("map_id: [", encoding="utf-8")
    assert "is not YAML" in (await recorrido(cluster, "map", "publish", str(bad))).err
    assert "there is no such file" in (await recorrido(cluster, "map", "publish", "nowhere.yaml")).err
    # What the form allows and the service does not comes back with the fields that the service names.
    bad.write_text("map_id: Not An Id\nname: x\nstages: []\n", encoding="utf-8")
    refused = await recorrido(cluster, "map", "publish", str(bad))
    assert refused.code == 1
    assert refused.err.startswith("error: journey: INVALID: map.map_id: ")
    assert "map.stages: " in refused.err


# -- actions ---------------------------------------------------------------------------------------------------------


async def test_an_action_lives_from_open_to_completed(cluster: Cluster) -> None:
    what = ("Shorten the queue", "--kind", "improvement", "--reason", "20 minutes", "--need", "store")
    opened = await answer(cluster, "actions", "open", *what)
    action_id = opened["actionId"]
    assert (opened["kind"], opened["state"], opened["reasons"]) == (
        "ACTION_KIND_IMPROVEMENT",
        "ACTION_STATE_OPEN",
        ["20 minutes"],
    )
    accepted = await answer(cluster, "actions", "accept", action_id, "--owner", "maja", "--expected-revision", "0")
    assert accepted["owner"] == "maja"
    started = await answer(cluster, "actions", "start", action_id, "--reason", "the till is here")
    assert started["state"] == "ACTION_STATE_IN_PROGRESS"
    lost = await recorrido(cluster, "actions", "complete", action_id, "--result", "helped", "--expected-revision", "0")
    assert lost.code == 1
    done = await answer(cluster, "actions", "complete", action_id, "--result", "no_change", "--note", "opened a till")
    assert done["result"] == "ACTION_RESULT_NO_CHANGE"
    shown = await answer(cluster, "actions", "show", action_id)
    assert [entry["actor"] for entry in shown["history"]] == ["tester"] * 4
    text = (await recorrido(cluster, "actions", "show", action_id)).out
    assert "Shorten the queue" in text
    refused = _one_line(await recorrido(cluster, "actions", "accept", action_id), 1)
    assert refused == (
        f"error: actions: ILLEGAL_TRANSITION: accept is not allowed: improvement {action_id} is COMPLETED, its owner is"
        " 'maja'; allowed now: verify, reopen, assign, prioritize, comment"
    )
    assert re.search(r"allowed now +verify, .*comment", text)
    verified = await recorrido(cluster, "actions", "verify", action_id, "--reason", "I saw it")
    assert verified.code == 0
    assert verified.err.startswith("note: tester verified it, though it was too early to measure whether it helped: I ")

    async def listed() -> bool:
        found = await answer(cluster, "actions", "list", "--state", "verified", "--kind", "improvement")
        return [each["actionId"] for each in found["actions"]] == [action_id]

    await until(listed, 20)


async def test_an_explanation_goes_back_to_the_customers_words(cluster: Cluster) -> None:
    said = {e.verbatim.text for each in sample.generate(CUSTOMERS) for e in each if e.verbatim.text}
    listed = (await answer(cluster, "actions", "list", "--kind", "recovery", "--limit", "5"))["actions"]
    trees = [(await recorrido(cluster, "explain", each["actionId"], COLUMNS="500")).out for each in listed]
    lines = [line for tree in trees for line in tree.splitlines() if "words at" in line]
    assert lines
    assert [line for line in lines if not any(f": “{text}”" in line for text in said)] == []


async def test_an_id_is_taken_as_a_narrow_table_tells_it(cluster: Cluster, customer_id: str) -> None:
    narrow = {"COLUMNS": "80"}
    listed = await recorrido(cluster, "actions", "list", "--limit", "1", **narrow)
    short = listed.out.splitlines()[1].split()[0]
    assert len(short) == show.SHORT_ID
    (action,) = (await answer(cluster, "actions", "list", "--limit", "1"))["actions"]
    assert action["actionId"].startswith(short)
    for asked in (("actions", "show"), ("explain",)):
        found = await recorrido(cluster, *asked, short)
        assert (found.code, action["actionId"] in found.out) == (0, True), found
    assert "there is no action 00000000; " in _one_line(await recorrido(cluster, "actions", "show", "00000000"), 1)
    table = (await recorrido(cluster, "analyses", customer_id, **narrow)).out.splitlines()
    event = table[1].split()[0]
    (one, *_) = (await answer(cluster, "analyses", customer_id, event))["analyses"]
    assert one["interactionEventId"].startswith(event)


async def test_a_repeated_request_changes_nothing(cluster: Cluster) -> None:
    request = ("actions", "open", "Call back", "--customer", "sample-1-0001", "--request-id", "once")
    first, second = await answer(cluster, *request), await answer(cluster, *request)
    assert first == second


async def test_publishing_a_playbook_tells_what_stays_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "quiet.yaml"
    file.write_text("{playbook_id: quiet, name: Quiet, disabled: true, recoveries: [{rule_id: r}]}", encoding="utf-8")
    still = int((await answer(cluster, "actions", "list", "--state", "open", "--limit", "1"))["total"])
    published = await recorrido(cluster, "playbook", "publish", str(file))
    assert (published.code, published.out) == (0, "quiet: version 1 is in force\n")
    assert (
        f"note: {still:,} actions that are open already keep their owner and due time, or have none:" in published.err
    )


async def test_recoveries_are_listed_page_by_page(cluster: Cluster) -> None:
    signals = (await answer(cluster, "signals", "--limit", "1"))["signals"]
    of_one = await answer(cluster, "actions", "list", "--kind", "recovery", "--customer", signals[0]["customerId"])
    assert of_one["actions"][0]["signalId"]
    limited = await recorrido(cluster, "actions", "list", "--limit", "1")
    assert "1 of " in limited.out


# -- the bus ---------------------------------------------------------------------------------------------------------


async def test_events_are_followed_from_the_start(cluster: Cluster) -> None:
    result = await recorrido(
        cluster, "events", "--from-start", "--type", "InteractionRecorded", "--limit", "30", "--json"
    )
    events = [json.loads(line) for line in result.out.splitlines()]
    assert {each["type"] for each in events} == {"recorrido.ingest.v1.InteractionRecorded"}
    positions = [each["position"] for each in events]
    assert positions == sorted(set(positions))
    assert len(events) == 30
    assert events[0]["stream"] == f"customer-{events[0]['data']['interaction']['customer']['customerId']}"
    text = await recorrido(cluster, "events", "--from-start", "--limit", "1")
    assert "PlaybookPublished" in text.out


async def test_following_a_quiet_bus_tells_where_and_ends_in_time(cluster: Cluster) -> None:
    quiet = ("events", "--type", "WebhookDeleted", "--timeout", "0.5")
    told = await recorrido(cluster, *quiet)
    assert (told.code, told.out) == (0, "")
    assert told.err == f"following the bus at nats://{cluster.address('nats')}, Ctrl-C stops\n"
    assert (await recorrido(cluster, *quiet, "--json")).err == ""


async def test_a_type_of_event_that_there_is_not_names_those_that_there_are(cluster: Cluster) -> None:
    refused = await recorrido(cluster, "events", "--type", "InteractionRecord", COLUMNS="2000")
    assert refused.code == 2
    assert "did you mean InteractionRecorded? there are InteractionRecorded, " in refused.err
    assert "ActionOpened" in refused.err
    # The last part alone would be one.
    assert (await recorrido(cluster, "events", "--type", "recorrido.journey.v1.ActionOpened")).code == 2
    full = ("events", "--from-start", "--type", "recorrido.ingest.v1.InteractionRecorded", "--limit", "1", "--json")
    assert json.loads((await recorrido(cluster, *full)).out)["type"] == "recorrido.ingest.v1.InteractionRecorded"


async def test_new_events_are_followed_over_a_restart_of_the_bus(cluster: Cluster) -> None:
    process = await start(("events", "--type", "ActionOpened", "--json"), environment(cluster.ports))
    lines: list[bytes] = []

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            lines.append(line)

    async def opened(title: str) -> bool:
        # It follows from when it is connected, which nothing tells: so open until one is seen.
        await answer(cluster, "actions", "open", title, "--kind", "improvement")
        return any(title.encode() in line for line in lines)

    reading = asyncio.create_task(read())
    try:
        await until(lambda: opened("before"), 60, what="an event before the restart")
        await cluster.kill_and_restart("nats")
        await until(lambda: opened("after"), 60, what="an event after the restart")
    finally:
        process.terminate()
        await process.wait()
        await reading
    positions = [json.loads(line)["position"] for line in lines]
    assert positions == sorted(set(positions)), "each once, in order"


# -- failures --------------------------------------------------------------------------------------------------------


def _one_line(result: Result, code: int) -> str:
    assert result.code == code, result
    assert result.out == ""
    (line,) = result.err.splitlines()
    return line


async def test_what_is_not_known_is_one_line(cluster: Cluster) -> None:
    assert _one_line(await recorrido(cluster, "customer", "nobody"), 1) == (
        "error: journey: CUSTOMER_UNKNOWN: nothing is known of customer 'nobody'; customers are called as their sources"
        " call them, 'recorrido signals' names some; --as-of is about when something was recorded"
    )
    assert _one_line(await recorrido(cluster, "analyses", "nobody"), 1) == (
        "error: inference: INTERACTION_UNKNOWN: nothing is recorded of customer 'nobody'; customers are called as their"
        " sources call them, 'recorrido signals' names some"
    )
    no_event = await recorrido(cluster, "analyses", "sample-1-0001", "00000000-0000-4000-8000-000000000000")
    assert _one_line(no_event, 1).endswith("; 'recorrido analyses CUSTOMER' tells the events of one")
    then = await recorrido(cluster, "customer", "nobody", "--as-of", "2020-01-01")
    assert "customer 'nobody' as of 2020-01-01T00:00:00+00:00" in _one_line(then, 1)
    call = ("actions", "open", "Call back", "--customer")
    assert (await recorrido(cluster, *call, "sample-1-0001")).code == 0
    assert _one_line(await recorrido(cluster, *call, "sample-1-O001"), 1) == (
        "error: nothing was ever recorded of customer 'sample-1-O001'; did you mean sample-1-0001? --new-customer opens"
        " it all the same, for somebody who is new"
    )
    assert _one_line(await recorrido(cluster, "customer", "smaple-1-0001"), 1) == (
        "error: journey: CUSTOMER_UNKNOWN: nothing is known of customer 'smaple-1-0001'; did you mean sample-1-0001?"
    )
    for asked in (("analyses", "Sample-1-0001"), ("export", "ample-1-0001")):
        told = f"error: nothing is known of customer '{asked[1]}'; did you mean sample-1-0001?"
        assert _one_line(await recorrido(cluster, *asked), 1) == told
    # Then nobody was there to be meant.
    then = await recorrido(cluster, "customer", "smaple-1-0001", "--as-of", "2020-01-01")
    assert "did you mean" not in _one_line(then, 1)
    assert (await recorrido(cluster, *call, "somebody new", "--new-customer")).code == 0
    assert _one_line(await recorrido(cluster, "analyze", " "), 1).endswith("not analysed: the text is empty or blank")
    assert (await recorrido(cluster, "actions", "list", "--owner", "nobody")).out == "none\n"
    assert (await recorrido(cluster, "webhook", "list")).out == "none\n"
    opened = await recorrido(cluster, "actions", "open", "Fix parcels")
    assert "--customer is required for a recovery" in opened.err
    no_action = _one_line(await recorrido(cluster, "actions", "show", "nothing"), 1)
    assert (
        no_action
        == "error: actions: ACTION_NOT_FOUND: there is no action nothing; 'recorrido actions list' tells the ids"
    )
    assert "no journey map 'none'" in _one_line(await recorrido(cluster, "map", "show", "none"), 1)
    assert "'none'; 'recorrido map list' tells" in _one_line(await recorrido(cluster, "scores", "--map", "none"), 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("scores", "--stage", "Buy", "--map", "omnichannel"),
            "selection.stage_id: no stage 'Buy' in the map 'omnichannel'; did you mean buy? its stages are: discover,",
        ),
        (
            ("points", "--touchpoint", "Visit to the store", "--map", "omnichannel"),
            "did you mean store_visit",
        ),
        (
            ("points", "--touchpoint", "zzz", "--map", "omnichannel"),
            "'zzz' in the map 'omnichannel'; it has 31 touchpoints; 'recorrido map show",
        ),
        (
            ("ladder", "--persona", "parent", "--map", "omnichannel"),
            "did you mean busy_parent? its personas are: digital_native,",
        ),
        (
            ("flow", "--goal", "fun", "--map", "omnichannel"),
            "no goal 'fun' in the map 'omnichannel'; its goals are: have_it,",
        ),
        (
            ("scores", "--need", "delivery/sped"),
            "did you mean delivery/speed or delivery or delivery/receipt? 'recorrido taxonomy' lists",
        ),
        (("points", "--need", "zzz"), "no need 'zzz' is known. 'recorrido taxonomy' lists them"),
        (
            ("scores", "--source", "webshp"),
            "no source 'webshp' is known; did you mean webshop? 'recorrido scores --by source'",
        ),
        (
            ("signals", "--customer", "nobody"),
            "nothing was ever recorded of customer 'nobody'; customers are called as",
        ),
        (("actions", "list", "--customer", "nobody"), "nothing was ever recorded of customer 'nobody'"),
        (("export", "nobody"), "'recorrido signals' names some"),
        (("webhook", "deliveries", "none"), "no webhook 'none' is known. 'recorrido webhook list' lists them"),
        (("actions", "list", "--touchpoint", "delivry"), "no touchpoint 'delivry' is known; did you mean delivery"),
        (("actions", "list", "--need", "delivry/speed"), "did you mean delivery/speed"),
        (("actions", "watch", "--touchpoint", "delivry"), "did you mean delivery"),
        (("impact", "x", "--metric", "csat", "--touchpoint", "delivry"), "did you mean delivery"),
        (("impact", "x", "--against", "delivry"), "did you mean delivery"),
        (("correct", "sample-1-0001", "x", "--need", "delivry/speed"), "did you mean delivery/speed"),
        (("correct", "sample-1-0001", "x", "--sentiment", "positive"), "'recorrido analyses CUSTOMER' tells the ids"),
        (("impact", "x", "--metric", "csat", "--need", "delivry/speed"), "did you mean delivery/speed"),
    ],
)
async def test_a_name_that_nobody_knows_is_told_with_those_that_there_are(
    cluster: Cluster, arguments: tuple[str, ...], told: str
) -> None:
    assert told in _one_line(await recorrido(cluster, *arguments), 1)


async def test_an_action_is_opened_about_what_there_is(cluster: Cluster) -> None:
    what = ("actions", "open", "Look at it", "--kind", "improvement")
    before = (await answer(cluster, "actions", "list", "--limit", "1"))["total"]
    for arguments, told in (
        (("--touchpoint", "delivry"), "no touchpoint 'delivry' is known; did you mean delivery"),
        (("--need", "delivry/speed"), "did you mean delivery/speed"),
    ):
        assert told in _one_line(await recorrido(cluster, *what, *arguments), 1)
    covered = (await answer(cluster, "coverage", "--map", "omnichannel"))["touchpoints"]
    heard_as = {each["touchpointId"]: each["heardAs"] for each in covered}
    assert all(name.startswith("till_") for name in heard_as["till"])
    for touchpoint in ("till", heard_as["till"][0], "kiosk_beta"):
        opened = await recorrido(cluster, *what, "--touchpoint", touchpoint)
        assert (opened.code, opened.err) == (0, "")
    # By the name on the map, under which all that its sources call otherwise is measured.
    measured = await recorrido(cluster, *what, "--touchpoint", "till", "--target", "volume")
    assert measured.code == 0, measured
    (opened_last,) = (await answer(cluster, "actions", "list", "--touchpoint", "till", "--limit", "1"))["actions"]

    async def volume(touchpoint: str) -> float:
        asked = ("--metric", "volume", "--touchpoint", touchpoint, "--window-days", "366")
        found = await answer(cluster, "impact", opened_last["actionId"], *asked)
        return float(found["impact"]["before"]["mean"])

    parts = [await volume(each) for each in heard_as["till"]]
    assert await volume("till") == pytest.approx(sum(parts))
    assert sum(parts) > 0

    async def listed() -> bool:
        return int((await answer(cluster, "actions", "list", "--limit", "1"))["total"]) == int(before) + 4

    await until(listed, 20)


async def test_a_need_that_nobody_told_of_is_still_a_need(cluster: Cluster) -> None:
    told = {key for each in (await answer(cluster, "scores", "--by", "need"))["groups"] for key in each["keys"]}
    needs = [each["path"] for each in (await answer(cluster, "taxonomy"))["needs"]]
    silent = next(path for path in needs if not any(each == path or each.startswith(f"{path}/") for each in told))
    assert (await answer(cluster, "scores", "--need", silent))["total"]["interactions"] == "0"
    assert (await recorrido(cluster, "actions", "list", "--need", silent)).out == "none\n"


async def test_tables_tell_the_ids_that_options_take(cluster: Cluster) -> None:
    on = ("--map", "omnichannel")
    for arguments, ids in (
        (("scores", *on), ["relationship_survey", "delivery_survey"]),
        (("scores", "--by", "stage", "--by", "persona", *on), ["get_help", "busy_parent"]),
        (("points", *on), ["app_browsing"]),
        (("flow", *on), ["store_visit"]),
        (("coverage", *on), ["make_good", "store_visit"]),
        (("map", "show", "omnichannel"), ["make_good", "store_visit", "busy_parent", "have_it"]),
    ):
        words = (await recorrido(cluster, *arguments)).out.split()
        assert [each for each in ids if each not in words] == [], arguments


@pytest.mark.parametrize("width", [80, 100, 120])
async def test_tables_fit_into_a_terminal(
    cluster: Cluster, customer_id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    for name, value in environment(cluster.ports, COLUMNS=str(width)).items():
        monkeypatch.setenv(name, value)

    async def begins_with(work: Coroutine[Any, Any, None], *columns: str) -> None:
        await work
        told = capsys.readouterr().out.splitlines()
        (head,) = [line for line in told if line.split()[: len(columns)] == list(columns)]
        table = told[told.index(head) :]
        assert "…" not in "".join(table)
        assert all(len(line) <= width for line in table)

    everything, one = pb.ListPointsRequest(map_id="omnichannel", limit=5), ListAnalysesRequest(customer_id=customer_id)
    await begins_with(flow._coverage(pb.GetCoverageRequest(map_id="omnichannel"), as_json=False), "stage", "touchpoint")
    await begins_with(journeys._points(everything, [journeys.Point.PAIN], as_json=False), "point", "need", "touchpoint")
    await begins_with(journeys._signals("", "", None, 5, as_json=False), "raised", "(UTC)")
    await begins_with(correct._analyses(one, as_json=False), "interaction")
    await begins_with(actions._list(ListActionsRequest(), 5, as_json=False), "id")


async def test_a_broken_rule_is_told_with_its_field(cluster: Cluster) -> None:
    line = _one_line(await recorrido(cluster, "actions", "open", " ", "--kind", "improvement"), 1)
    assert line.startswith("error: actions: INVALID: ")
    assert "title: required" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("actions", "complete", "x"),
        ("actions", "open", "Fix parcels"),
        ("scores", "--as-of", "yesterday"),
        ("points", "--kind", "joy"),
        ("signals", "--rule", "bad_momnt"),
        ("correct", "sample-1-0001", "x"),
        ("webhook", "register", "https://example.org", "--type", "InteractionRecorded"),
        ("webhook", "register", "https://example.org", "--type", "Custard*"),
        ("customer",),
        ("import", "olist"),
        ("nothing",),
    ],
)
async def test_calling_it_wrongly_is_2(cluster: Cluster, arguments: tuple[str, ...]) -> None:
    refused = await recorrido(cluster, *arguments)
    assert (refused.code, "Value error" in refused.err) == (2, False), "in words, not in Python's"


@pytest.mark.parametrize(
    "command", ["scores", "points", "ladder", "flow", "coverage", "rejected list", "playbook dry-run standard"]
)
async def test_a_span_that_ends_before_it_begins_is_told_by_its_options(cluster: Cluster, command: str) -> None:
    for span in (("--from", "2026-09-01", "--to", "2026-08-01"), ("--to", "2026-08-01", "--from", "2026-08-01")):
        refused = await recorrido(cluster, *command.split(), *span)
        assert refused.code == 2
        assert "Invalid value for --to: has to be after --from" in refused.err


@pytest.mark.parametrize("command", [("overview",), ("run", "--no-sample")])
async def test_a_port_that_is_none_is_2(command: tuple[str, ...], tmp_path: Path) -> None:
    env = {"RECORRIDO_PORT_JOURNEY": "fifty", "RECORRIDO_DATA": str(tmp_path)}
    process = await start(command, {**environment(port_numbers.free()), **env})
    out, err = await process.communicate()
    line = _one_line(Result(process.returncode or 0, out.decode(), err.decode()), 2)
    assert "RECORRIDO_PORT_JOURNEY must be a port from 1 to 65535, not 'fifty'" in line


@pytest.mark.parametrize(
    ("arguments", "service"),
    [
        (("scores",), "journey"),
        (("actions", "list"), "actions"),
        (("analyze", "x"), "inference"),
        (("import", "sample"), "actions"),
        (("events",), "nats"),
    ],
)
async def test_who_does_not_answer_is_told_with_the_address(arguments: tuple[str, ...], service: str) -> None:
    nobody = port_numbers.free()
    process = await start(arguments, environment(nobody))
    out, err = await process.communicate()
    line = _one_line(Result(process.returncode or 0, out.decode(), err.decode()), 1)
    assert nobody.of(service) in line
    assert "recorrido run" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("points",),
        ("overview", "--json"),
        ("customer", "sample-1-0001", "--json"),
        ("events", "--from-start"),
        ("events", "--from-start", "--json"),
        ("export", "sample-1-0001"),
        ("analyze", "Nobody answered the phone.", "--json"),
        ("playbook", "schema"),
        ("--help",),
    ],
)
async def test_a_reader_that_goes_away_ends_it_quietly(cluster: Cluster, arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", *arguments),
        env=environment(cluster.ports),
        cwd=ROOT,
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writer)
    _, err = await asyncio.wait_for(process.communicate(), 30)
    told = [line for line in err.decode().splitlines() if "Ctrl-C stops" not in line]
    assert (process.returncode, told) == (141, [])


@pytest.mark.parametrize("arguments", [("watch", "sample-1-0001"), ("events",), ("actions", "watch")])
async def test_what_follows_ends_when_its_reader_goes_though_nothing_comes(
    cluster: Cluster, arguments: tuple[str, ...]
) -> None:
    process = await start(arguments, environment(cluster.ports))
    assert process.stdout is not None
    assert process.stderr is not None
    if arguments == ("events",):
        assert b"following the bus" in await process.stderr.readline()
    elif arguments[0] == "watch":
        assert await process.stdout.readline(), "what is so far"
    process.stdout._transport.close()  # type: ignore[attr-defined]  # as `head` does when it has its lines
    err = await asyncio.wait_for(process.stderr.read(), 30)
    assert (await process.wait(), err) == (141, b"")


async def test_a_part_that_is_away_is_named_with_what_to_do(cluster: Cluster) -> None:
    here = {"RECORRIDO_DATA": str(cluster.data)}
    for part, name, questions in (
        ("triton", "triton", (("analyze", "Nobody answered."), ("models",))),
        ("postgres", "PostgreSQL", (("scores",), ("actions", "list"))),
    ):
        await cluster.stop(part)
        told = f"cannot answer, as {name} does not answer it: it was stopped here, and 'recorrido run' starts it again"
        for asked in questions:
            assert told in _one_line(await recorrido(cluster, *asked, **here), 1)
        await cluster.start(part)
    await cluster.stop("journey")
    line = _one_line(await recorrido(cluster, "scores", **here), 1)
    assert line.startswith(f"error: journey does not answer at {cluster.address('journey')}: it was stopped here")
    await cluster.start("journey")
    assert (await recorrido(cluster, "scores", **here)).code == 0


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (
            {"postgres": "starting", "journey": "waiting"},
            (
                "'recorrido run' is starting it again, so try again in some seconds"
                " (postgres is starting, journey is waiting)"
            ),
        ),
        ({"postgres": "ready", "journey": "ready"}, "it runs, so try again; {data}/log/journey.log tells more"),
    ],
)
async def test_advice_is_as_the_supervisor_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: dict[str, str], told: str
) -> None:
    monkeypatch.setenv("RECORRIDO_DATA", str(tmp_path))
    parts = [
        {"name": name, "state": state, "pid": None, "addresses": {"": f"127.0.0.1:{number}"}}
        for number, (name, state) in enumerate(states.items(), 1)
    ]
    async with directory.held(tmp_path):
        directory.write(tmp_path, {"parts": parts})
        assert machine.advice("journey", "127.0.0.1:2", "look elsewhere") == told.format(data=tmp_path)
        # Another journey, somewhere else.
        elsewhere = "start the services with 'recorrido run', or look elsewhere"
        assert machine.advice("journey", "10.0.0.1:2", "look elsewhere") == elsewhere
        # Of what the supervisor does not run there is no state, and no log.
        assert machine.advice("read model", "127.0.0.1:2", "", "is behind") == "try again in some seconds (is behind)"
        assert machine.advice("PostgreSQL", "10.0.0.1:2", "", "refused") == "try again in some seconds (refused)"


async def test_whoever_cannot_be_asked_in_time_is_not_taken_for_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECORRIDO_DATA", str(tmp_path))
    told = machine.advice("journey", "127.0.0.1:2", "look elsewhere")
    assert told == f"nothing runs on {tmp_path}: start the services with 'recorrido run', or look elsewhere"
    monkeypatch.setattr(machine, "_ANSWERS_WITHIN_S", 0)
    told = machine.advice("journey", "127.0.0.1:2", "look elsewhere", "refused")
    assert told == "try again in some seconds (refused); 'recorrido run' starts what does not run here"


async def test_addresses_can_be_told_one_by_one(cluster: Cluster) -> None:
    nobody = port_numbers.free()
    process = await start(
        ("overview", "--json"), environment(nobody, RECORRIDO_JOURNEY_ADDRESS=cluster.address("journey"))
    )
    await process.communicate()
    assert process.returncode == 0
