"""Journey maps as YAML files: `map publish|list|show|diff|preview`.

A file holds the fields of `recorrido.journey.v1.JourneyMap` by their proto names; a channel is written as `web` or
`word_of_mouth`. Their JSON Schema is docs/journey-map.schema.json.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import grpc
import typer
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from rich.table import Table
from rich.text import Text

from recorrido.ingest.v1.interaction_pb2 import Channel
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.journey_map_pb2 import JourneyMap, LoyaltyLevel, Metric
from services.cli import clients, mapdrawing, show, yamlfiles
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import Actor, AsOf, Json, RequestId, run

if TYPE_CHECKING:
    from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceAsyncStub

app = typer.Typer(no_args_is_help=True)
app.callback(invoke_without_command=True)(mapdrawing.draw)

SHIPPED = Path(__file__).parent / "maps"


def load(file: str | Path) -> JourneyMap:
    """Read a map from a YAML file, or a shipped one by its name.

    Raises:
        CommandError: the file cannot be read, is not YAML or breaks the form; every problem is told with its place.
    """
    path = Path(file)
    if not path.exists() and (shipped := SHIPPED / f"{file}.yaml").exists():
        path = shipped
    names = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.yaml")))
    reader = _Reader()
    found = reader.journey_map(yamlfiles.read(path, others=f"shipped maps are {names}"))
    if reader.problems:
        raise yamlfiles.refusal(path, "journey map", reader.problems)
    return found


#: Without these a map is not one, whatever else it says.
_REQUIRED = {
    "JourneyMap": {"map_id", "name"},
    "Stage": {"stage_id", "name"},
    "Touchpoint": {"touchpoint_id", "name"},
    "Expectation": {"metric", "target"},
    "MappingRule": {"touchpoint_id"},
    "Persona": {"persona_id", "name"},
    "PersonaCondition": {"attribute", "values"},
    "Goal": {"goal_id", "name", "touchpoint_ids"},
    "LoyaltyRule": {"level"},
}


class _Reader:
    """Turns what YAML holds into a map, field by field of the contract, and notes what is not as it should be."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def journey_map(self, content: Any) -> JourneyMap:
        found = JourneyMap()
        self._fill(found, content, "")
        return found

    def _fill(self, message: Message, content: Any, place: str) -> None:
        """Set the fields of `message` to what `content` holds."""
        descriptor = message.DESCRIPTOR
        if not isinstance(content, dict):
            self._note(place, f"expected keys and values, not {content!r:.60}")
            return
        known = descriptor.fields_by_name
        for key in content:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
                self._note(place, f"unknown key {key!r}; {meant}")
        for key in sorted(_REQUIRED.get(descriptor.name, set()) - content.keys()):
            self._note(f"{place}.{key}", "is missing")
        for field in descriptor.fields:
            # An empty key is as good as none.
            if content.get(field.name) is not None:
                self._set(message, field, content[field.name], f"{place}.{field.name}".lstrip("."))

    def _set(self, message: Message, field: Any, content: Any, place: str) -> None:
        if field.is_repeated:
            if not isinstance(content, list):
                self._note(place, f"expected a list, not {content!r:.60}")
                return
            for n, each in enumerate(content):
                if field.message_type is not None:
                    self._fill(getattr(message, field.name).add(), each, f"{place}[{n}]")
                else:
                    value = self._value(field, each, f"{place}[{n}]")
                    getattr(message, field.name).extend([] if value is None else [value])
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            self._fill(getattr(message, field.name), content, place)
        elif (value := self._value(field, content, place)) is not None:
            setattr(message, field.name, value)

    def _value(self, field: Any, content: Any, place: str) -> Any:
        """Return what a field is set to, None where `content` is not of its kind."""
        if field.enum_type is not None:
            names = show.names(field.enum_type)
            if content not in names:
                self._note(place, f"{content!r} is no {place.rpartition('.')[2]}; there are {', '.join(names)}")
            return names.get(content) if isinstance(content, str) else None
        right, expected = _KINDS[field.cpp_type]
        if not isinstance(content, right) or (isinstance(content, bool) and right is not bool):
            self._note(place, f"expected {expected.format(repr(content)[:60])}")
            return None
        return content

    def _note(self, place: str, problem: str) -> None:
        where = place.strip(".")
        self.problems.append(f"{where}: {problem}" if where else problem)


_KINDS: dict[int, tuple[Any, str]] = {
    FieldDescriptor.CPPTYPE_STRING: (str, "text, not {}; put it in quotes"),
    FieldDescriptor.CPPTYPE_BOOL: (bool, "true or false, not {}"),
    FieldDescriptor.CPPTYPE_INT32: (int, "a whole number, not {}"),
    FieldDescriptor.CPPTYPE_DOUBLE: ((int, float), "a number, not {}"),
}


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
    request_id: RequestId,
    as_json: Json = False,
) -> None:
    """Publish a map, or a new version of it."""
    request = pb.PublishJourneyMapRequest(map=load(file), actor=actor, request_id=request_id)

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
        lines = show.table(
            "map",
            "name~",
            "version#",
            "published (UTC)",
            "by",
            "stages#",
            "touchpoints#",
            "rules#",
            spared=("rules", "stages", "by"),
        )
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
    map_id: Annotated[str, typer.Argument(metavar="ID", help="The map; `map list` tells it.")],
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


@app.command()
def diff(
    map_id: Annotated[str, typer.Argument(metavar="ID", help="The map; `map list` tells it.")],
    *,
    from_version: Annotated[int, typer.Option("--from", min=0, help="0 is the one before.")] = 0,
    to_version: Annotated[int, typer.Option("--to", min=0, help="0 is the latest.")] = 0,
    as_json: Json = False,
) -> None:
    """Show what changed from one version of a map to another."""

    async def work() -> None:
        async with clients.journey(Addresses.configured()) as journey:
            found = await journey.DiffJourneyMaps(
                pb.DiffJourneyMapsRequest(map_id=map_id, from_version=from_version, to_version=to_version),
                timeout=DEADLINE_S,
            )
        if as_json:
            show.print_json(found)
            return
        out = show.console()
        first = f"version {found.to_version} is the first: all of it is new"
        out.print(f"from version {found.from_version} to {found.to_version}" if found.from_version else first)
        out.print(_change_table(found.changes))

    run(work())


@app.command()
def preview(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A draft as a YAML file, or the name of a shipped map.")],
    *,
    as_of: AsOf = None,
    as_json: Json = False,
) -> None:
    """Read the history by a draft and show what would change; nothing is published."""
    request = pb.PreviewJourneyMapRequest(draft=load(file), as_of=as_of)

    async def work() -> None:
        async with clients.journey(Addresses.configured()) as journey:
            found = await journey.PreviewJourneyMap(request, timeout=DEADLINE_S)
        if as_json:
            show.print_json(found)
        else:
            _print_preview(found)

    run(work())


def _change_table(changes: Iterable[pb.MapChange]) -> Table:
    lines = show.table("", "what~", "before~", "after~")
    for each in changes:
        kind = show.name(pb.MapChangeKind.DESCRIPTOR, each.kind)
        lines.add_row(kind, show.plain(each.path), show.plain(each.before), show.plain(each.after))
    return lines


def _print_preview(found: pb.PreviewJourneyMapResponse) -> None:
    out = show.console()
    against = f"version {found.against_version}" if found.against_version else "no map of this id"
    out.print(f"against {against}; {show.count(found.moved)} interactions would be placed elsewhere")
    if found.changes:
        out.print(_change_table(found.changes))
    lines = show.table("touchpoint~", "interactions#", "would be#", "NPS#", "would be#", "CSAT#", "would be#")
    for each in found.touchpoints:
        # The cells of scores begin with interactions and customers.
        before, after = (show.scores(scores) for scores in (each.before, each.after))
        pairs = [cell for n in (0, 2, 3) for cell in (before[n], after[n])]
        lines.add_row(show.plain(each.name), *pairs)
    out.print(lines)
    counts = show.table("", "now#", "would be#")
    counts.add_row("on no map", show.count(found.uncovered_before), show.count(found.uncovered_after))
    counts.add_row("episodes", show.count(found.episodes_before), show.count(found.episodes_after))
    for persona in found.personas:
        name = f"persona {persona.persona_id}" if persona.persona_id else "of no persona"
        counts.add_row(show.plain(name), show.count(persona.customers_before), show.count(persona.customers_after))
    for level in found.levels:
        name = show.name(LoyaltyLevel.DESCRIPTOR, level.level) or "no level"
        counts.add_row(name, show.count(level.customers_before), show.count(level.customers_after))
    out.print(counts)


def _print_map(published: pb.PublishedMap) -> None:
    out = show.console()
    journey_map = published.map
    name = show.plain(journey_map.name)
    out.print(Text(journey_map.map_id, style="bold"), name, f"· version {published.version}")
    lines = show.table(
        "stage~",
        "id",
        "touchpoint~",
        "id",
        "moment of truth",
        "channel",
        "owner~",
        "expected~",
        spared=("owner", "channel", "expected", "moment of truth"),
    )
    for stage in journey_map.stages:
        for n, touchpoint in enumerate(stage.touchpoints):
            lines.add_row(
                show.plain("" if n else stage.name),
                "" if n else stage.stage_id,
                show.plain(touchpoint.name),
                touchpoint.touchpoint_id,
                "yes" if touchpoint.moment_of_truth else "",
                show.name(Channel.DESCRIPTOR, touchpoint.channel),
                show.plain(touchpoint.owner),
                ", ".join(
                    f"{show.name(Metric.DESCRIPTOR, each.metric).upper()} {each.target:g}"
                    for each in touchpoint.expected
                ),
            )
    out.print(show.filled(lines))
    rules = show.table("source", "touchpoint", "channel", "placed at", title="The first rule that matches wins")
    for rule in journey_map.mapping_rules:
        rules.add_row(
            show.plain(rule.source or "any"),
            show.plain(rule.touchpoint or "any"),
            show.name(Channel.DESCRIPTOR, rule.channel) or "any",
            rule.touchpoint_id,
        )
    out.print(rules)
    for title, named in (
        ("Personas", [(each.persona_id, each.name) for each in journey_map.personas]),
        ("Goals", [(each.goal_id, each.name) for each in journey_map.goals]),
    ):
        if named:
            ids = show.table("name~", "id", title=title)
            for id_, name_ in named:
                ids.add_row(show.plain(name_), id_)
            out.print(ids)
