"""The board in the terminal and as a page, which a real browser looks at."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from recorrido.actions.v1 import actions_service_pb2 as pb
from services.cli.board import html_page
from tests.support.cli import recorrido
from tests.support.cluster import running
from tests.support.office import IMPROVEMENT, Office, connected
from tests.support.wait import until

CHROMIUM = Path("/usr/bin/chromium")
#: A name that would do something if it were not text.
NASTY = "<script>document.title='x'</script> & \"Ána\""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    async with running(["actions"], data=tmp_path_factory.mktemp("data")) as cluster, connected(cluster) as it:
        await it.open(touchpoint="delivery", owner=NASTY)
        await it.open(touchpoint="delivery")
        await it.open(kind=IMPROVEMENT, customer_id="", need_path="delivery/speed")
        await it.until_listed(3)
        yield it


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_terminal_shows_the_board(office: Office) -> None:
    shown = await recorrido(office.cluster, "board")
    assert (shown.code, shown.err) == (0, "")
    assert all(word in shown.out for word in ("open", "delivery", "delivery/speed", "improvement"))
    only = await recorrido(office.cluster, "board", "--kind", "improvement")
    assert "recovery" not in only.out
    assert len((await recorrido(office.cluster, "board", "--json")).json["byState"]) == 2


async def test_a_page_that_cannot_be_written_is_told(office: Office, tmp_path: Path) -> None:
    failed = await recorrido(office.cluster, "board", "--html", str(tmp_path))
    assert failed.code == 1
    assert "cannot be written" in failed.err
    both = await recorrido(office.cluster, "board", "--html", str(tmp_path / "x.html"), "--json")
    assert both.code == 2


async def test_an_empty_board_is_a_page_too() -> None:
    page = html_page(pb.GetBoardResponse(as_of=Timestamp(seconds=1)), pb.ListActionsResponse())
    assert page.count("nothing") == 5


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser: {CHROMIUM} is missing (apt-get install chromium)")
async def test_a_browser_shows_the_page(office: Office, tmp_path: Path) -> None:
    from playwright.async_api import async_playwright

    late = await office.open(title="Late " + str(uuid4()), due_at=_soon())

    async def overdue() -> bool:
        return (await office.list(overdue=True)).total == 1

    await until(overdue, 30)
    file = tmp_path / "board.html"
    written = await recorrido(office.cluster, "board", "--html", str(file))
    assert (written.code, written.err) == (0, "")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await browser.new_page(viewport={"width": 360, "height": 800})
            problems: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message: problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            await page.goto(file.as_uri())
            assert (await page.title()).startswith("Actions, ")
            assert await page.evaluate("document.documentElement.lang") == "en"
            # As assistive technology sees it.
            for name in (
                "Overdue",
                "By state",
                "By owner, of what is not closed",
                "By touchpoint, of what is not closed",
            ):
                assert await page.get_by_role("table", name=name, exact=True).count() == 1
            states = page.get_by_role("table", name="By state")
            assert await states.get_by_role("rowheader", name="open").count() == 2
            assert await page.get_by_role("columnheader", name="Overdue").count() == 4
            assert await page.get_by_role("rowheader", name=late.title).count() == 1
            assert await page.get_by_role("rowheader", name=NASTY).count() == 1
            # Fits a telephone, in both schemes, and on paper.
            for scheme in ("light", "dark"):
                await page.emulate_media(color_scheme=scheme)
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                assert await page.evaluate(_CONTRAST) >= 4.5
            assert await page.evaluate(_NARROWEST) >= 120
            # Nothing on it scrolls sideways: a line is a block, which names each of its numbers.
            for width in (320, 360, 400):
                await page.set_viewport_size({"width": width, "height": 800})
                assert await page.evaluate(_SIDEWAYS) == []
            late_row = page.get_by_role("row", name=late.title)
            box = await late_row.bounding_box()
            assert box is not None
            assert box["height"] > 80, "stacked"
            assert await late_row.get_by_role("cell").count() == 5, "and a table still to those who hear it"
            name = "getComputedStyle(document.querySelector('td[data-name=Owner]'), '::before').content"
            assert await page.evaluate(name) == '"Owner"'
            await page.set_viewport_size({"width": 1200, "height": 800})
            assert await page.evaluate(name) == "none"
            # On paper everything is light, though the screen is dark.
            await page.emulate_media(media="print", color_scheme="dark")
            bar = "getComputedStyle(document.documentElement).getPropertyValue('--bar').trim()"
            assert await page.evaluate(bar) == "#c9dcf2"
            assert len(await page.pdf()) > 1_000
            assert (problems, asked) == ([], [file.as_uri()])
        finally:
            await browser.close()


def _soon() -> Timestamp:
    at = Timestamp()
    at.FromDatetime(datetime.now(UTC) + timedelta(seconds=2))
    return at


#: The least contrast of any text with its ground (WCAG 2.2, definition of contrast ratio).
_CONTRAST = """() => {
    const light = text => {
        const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = light(getComputedStyle(document.body).backgroundColor);
    return Math.min(...[...document.querySelectorAll('h1, p, th, td, caption')].map(each => {
        const ink = light(getComputedStyle(each).color);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    }));
}"""
#: What is wider than the room that it has, but for what is there to be heard alone.
_SIDEWAYS = """() => [...document.querySelectorAll('html, .wide, tbody *')]
    .filter(each => each.scrollWidth > each.clientWidth + 1 && each.clientWidth)
    .map(each => `${each.tagName} ${each.className} ${each.scrollWidth} > ${each.clientWidth}`)"""
#: The width of the narrowest name of a line, pixels: wide enough to be read as words.
_NARROWEST = "() => Math.min(...[...document.querySelectorAll('tbody th')].map(each => each.clientWidth))"
