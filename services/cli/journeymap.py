"""Journey maps as YAML files: `map publish|list|show`.

A file holds the fields of `recorrido.journey.v1.JourneyMap` by their proto names; a channel is written as `web` or
`word_of_mouth`.
"""

import difflib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import grpc
import typer
import yaml
from rich.text import Text

from recorrido.ingest.v1.interaction_pb2 import Channel
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.journey_map_pb2 import JourneyMap, MappingRule, Stage, Touchpoint
from services.cli import clients, show
from services.cli.actions import Actor
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError
from services.cli.options import Json, run

if TYPE_CHECKING:
    from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceAsyncStub

app = typer.Typer(help="Journey maps: the journey as it is meant to be.", no_args_is_help=True)

SHIPPED = Path(__file__).parent / "maps"
_MAX_PROBLEMS = 20


def load(path: Path) -> JourneyMap:
    """Read a map.

    Raises:
        CommandError: the file cannot be read, is not YAML or breaks the form; every problem is told with its place.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.yaml")))
        raise CommandError(f"{path}: there is no such file; shipped maps are {shipped}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise CommandError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    reader = _Reader()
    found = reader.journey_map(content)
    if reader.problems:
        told = "\n  ".join(reader.problems[:_MAX_PROBLEMS])
        rest = len(reader.problems) - _MAX_PROBLEMS
        raise CommandError(f"{path}: is no journey map:\n  {told}" + (f"\n  and {rest} more" if rest > 0 else ""))
    return found


class _Reader:
    """Turns what YAML holds into a map, and notes everything that is not as it should be."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def journey_map(self, content: Any) -> JourneyMap:
        fields = self._fields(content, "", {"map_id", "name"}, {"stages", "mapping_rules"})
        return JourneyMap(
            map_id=self._text(fields, "", "map_id"),
            name=self._text(fields, "", "name"),
            stages=self._list(fields, "", "stages", self._stage),
            mapping_rules=self._list(fields, "", "mapping_rules", self._rule),
        )

    def _stage(self, content: Any, place: str) -> Stage:
        fields = self._fields(content, place, {"stage_id", "name"}, {"touchpoints"})
        return Stage(
            stage_id=self._text(fields, place, "stage_id"),
            name=self._text(fields, place, "name"),
            touchpoints=self._list(fields, place, "touchpoints", self._touchpoint),
        )

    def _touchpoint(self, content: Any, place: str) -> Touchpoint:
        fields = self._fields(content, place, {"touchpoint_id", "name"}, {"moment_of_truth"})
        truth = fields.get("moment_of_truth", False)
        if not isinstance(truth, bool):
            self._note(place, "moment_of_truth", f"expected true or false, not {truth!r}")
        return Touchpoint(
            touchpoint_id=self._text(fields, place, "touchpoint_id"),
            name=self._text(fields, place, "name"),
            moment_of_truth=truth is True,
        )

    def _rule(self, content: Any, place: str) -> MappingRule:
        fields = self._fields(content, place, {"touchpoint_id"}, {"source", "touchpoint", "channel"})
        channels = show.names(Channel.DESCRIPTOR)
        channel = self._text(fields, place, "channel")
        if channel and channel not in channels:
            self._note(place, "channel", f"{channel!r} is no channel; there are {', '.join(channels)}")
        return MappingRule(
            source=self._text(fields, place, "source"),
            touchpoint=self._text(fields, place, "touchpoint"),
            channel=channels.get(channel, Channel.CHANNEL_UNSPECIFIED),
            touchpoint_id=self._text(fields, place, "touchpoint_id"),
        )

    def _fields(self, content: Any, place: str, required: set[str], optional: set[str]) -> Mapping[str, Any]:
        if not isinstance(content, dict):
            self._note(place, "", f"expected keys and values, not {content!r:.60}")
            return {}
        known = required | optional
        for key in content:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
                self._note(place, "", f"unknown key {key!r}; {meant}")
        for key in sorted(required - content.keys()):
            self._note(place, key, "is missing")
        return content

    def _list(self, fields: Mapping[str, Any], place: str, key: str, read: Callable[[Any, str], Any]) -> list[Any]:
        content = fields.get(key) or []
        if not isinstance(content, list):
            self._note(place, key, f"expected a list, not {content!r:.60}")
            return []
        return [read(each, f"{place}.{key}[{n}]".lstrip(".")) for n, each in enumerate(content)]

    def _text(self, fields: Mapping[str, Any], place: str, key: str) -> str:
        content = fields.get(key, "")
        if not isinstance(content, str):
            self._note(place, key, f"expected text, not {content!r:.60}; put it in quotes")
            return ""
        return content

    def _note(self, place: str, key: str, problem: str) -> None:
        where = f"{place}.{key}".strip(".")
        self.problems.append(f"{where}: {problem}" if where else problem)


async def publish_if_new(journey: "JourneyServiceAsyncStub", journey_map: JourneyMap, actor: str) -> bool:
    """Publish a shipped map unless one of its id was published; whether it was done."""
    try:
        await journey.GetJourneyMap(pb.GetJourneyMapRequest(map_id=journey_map.map_id), timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
    else:
        return False
    # The id makes a repetition after a lost answer harmless.
    request_id = f"shipped:{journey_map.map_id}"
    await journey.PublishJourneyMap(
        pb.PublishJourneyMapRequest(map=journey_map, actor=actor, request_id=request_id), timeout=DEADLINE_S
    )
    return True


@app.command()
def publish(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or the name of a shipped map.")],
    *,
    actor: Actor,
    as_json: Json = False,
) -> None:
    """Publish a map, or a new version of it."""
    path = Path(file)
    shipped = SHIPPED / f"{file}.yaml"
    journey_map = load(shipped if not path.exists() and shipped.exists() else path)
    request = pb.PublishJourneyMapRequest(map=journey_map, actor=actor, request_id=str(uuid.uuid4()))

    async def work() -> None:
        async with clients.journey(Addresses.configured()) as journey:
            answer = await journey.PublishJourneyMap(request, timeout=DEADLINE_S)
        if as_json:
            show.print_json(answer)
        else:
            published = answer.published
            show.console().print(f"{published.map.map_id}: version {published.version} is published")

    run(work())


@app.command("list")
def list_maps(*, as_json: Json = False) -> None:
    """List the published maps, each in its latest version."""

    async def work() -> None:
        async with clients.journey(Addresses.configured()) as journey:
            found = await journey.ListJourneyMaps(pb.ListJourneyMapsRequest(), timeout=DEADLINE_S)
        if as_json:
            show.print_json(found)
            return
        lines = show.table("map", "name~", "version#", "published (UTC)", "by", "stages#", "touchpoints#", "rules#")
        for each in found.maps:
            lines.add_row(
                each.map.map_id,
                show.plain(each.map.name),
                str(each.version),
                show.when(each.published_at),
                show.plain(each.actor),
                str(len(each.map.stages)),
                str(sum(len(stage.touchpoints) for stage in each.map.stages)),
                str(len(each.map.mapping_rules)),
            )
        show.console().print(lines)

    run(work())


@app.command("show")
def show_map(
    map_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    version: Annotated[int, typer.Option(min=0, help="0 is the latest.")] = 0,
    as_json: Json = False,
) -> None:
    """Show a map: its stages, touchpoints and mapping rules."""

    async def work() -> None:
        async with clients.journey(Addresses.configured()) as journey:
            found = await journey.GetJourneyMap(
                pb.GetJourneyMapRequest(map_id=map_id, version=version), timeout=DEADLINE_S
            )
        if as_json:
            show.print_json(found)
        else:
            _print_map(found.published)

    run(work())


def _print_map(published: pb.PublishedMap) -> None:
    out = show.console()
    journey_map = published.map
    name = show.plain(journey_map.name)
    out.print(Text(journey_map.map_id, style="bold"), name, f"· version {published.version}")
    lines = show.table("stage~", "touchpoint~", "id", "moment of truth")
    for stage in journey_map.stages:
        for n, touchpoint in enumerate(stage.touchpoints):
            lines.add_row(
                show.plain("" if n else stage.name),
                show.plain(touchpoint.name),
                touchpoint.touchpoint_id,
                "yes" if touchpoint.moment_of_truth else "",
            )
    out.print(lines)
    rules = show.table("source", "touchpoint", "channel", "placed at", title="The first rule that matches wins")
    for rule in journey_map.mapping_rules:
        rules.add_row(
            show.plain(rule.source or "any"),
            show.plain(rule.touchpoint or "any"),
            show.name(Channel.DESCRIPTOR, rule.channel) or "any",
            rule.touchpoint_id,
        )
    out.print(rules)
