"""One customer's journey: in the order in which it happened to them, how it felt, and where it led."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import numpy as np

from recorrido.actions.v1.events import ActionKind, ActionResult, ActionState
from recorrido.inference.v1.events import Analysis, PointKind
from recorrido.ingest.v1.events import CustomerKind, Interaction, InteractionRecorded
from recorrido.journey.v1.events import Persona
from services.foundation.errors import NotFoundError
from services.foundation.paging import read_token, write_token
from services.journey.domain.experience import Experience, experience
from services.journey.domain.history import History, Index, Ints, microseconds, moment_of
from services.journey.domain.loyalty import Loyalty, loyalty, rules_of
from services.journey.domain.naming import NEAREST, slips
from services.journey.domain.reading import Reading
from services.journey.views.money import Amount, ShareOfWallet, amount, share_of_wallet, spent
from services.journey.views.names import Kind, among, texts_of
from services.journey.views.points import KINDS
from services.journey.views.signals import Signal, places, signals_at
from services.journey.views.snapshot import NOW, MapInForce, Snapshot

_DECODE_INTERACTION = msgspec.json.Decoder(InteractionRecorded).decode
_DECODE_ANALYSIS = msgspec.json.Decoder(Analysis).decode

#: occurred_at and position of the last entry given, and before which position the first page saw the history.
_TOKEN = msgspec.json.Decoder(tuple[str, tuple[datetime, int, int]])
_BEGINNING = (datetime(1, 1, 1, tzinfo=UTC), -1)
#: Signals, actions and pieces of evidence given: the newest.
_NEWEST = 100
#: Moments, episodes and visits to stages given: the last.
MAX_PARTS = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One interaction. `touchpoint_id` is empty where the map does not place it, `analysis` None until there is one.

    `recorded_under` is the linked identity's customer id, empty where it is the customer's own.
    """

    event_id: UUID
    position: int
    occurred_at: datetime
    recorded_at: datetime
    interaction: Interaction
    touchpoint_id: str
    analysis: Analysis | None
    analysis_failure: str
    signal_ids: tuple[str, ...]
    recorded_under: str


@dataclass(frozen=True, slots=True)
class Moment:
    """How one interaction felt, -1 to 1."""

    event_id: UUID
    occurred_at: datetime
    value: float
    touchpoint_id: str
    touchpoint_name: str


@dataclass(frozen=True, slots=True)
class Curve:
    """How it felt from moment to moment, with the peak, the end and the lasting impression they leave."""

    moments: Sequence[Moment]
    peak: Moment | None
    end: Moment | None
    lasting_impression: float | None
    mean: float | None


@dataclass(frozen=True, slots=True)
class Episode:
    episode_id: str
    started_at: datetime
    ended_at: datetime
    interactions: int
    goal_ids: tuple[str, ...]
    experience: Curve


@dataclass(frozen=True, slots=True)
class StageVisit:
    """Interactions of one stage in a row. `re_entry`: how often they had been there before."""

    stage_id: str
    stage_name: str
    entered_at: datetime
    left_at: datetime
    interactions: int
    re_entry: int


@dataclass(frozen=True, slots=True)
class CustomerPoint:
    kind: PointKind
    need_path: str
    touchpoint_id: str
    touchpoint_name: str
    mentions: int
    mean_sentiment: float
    last_at: datetime


@dataclass(frozen=True, slots=True)
class CustomerAction:
    action_id: str
    kind: ActionKind
    state: ActionState
    result: ActionResult
    title: str
    signal_id: str
    opened_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class CustomerJourney:
    """A page of a timeline; `total` counts all entries, and what follows it is about all of them.

    `customer_id` is whose it is, also if asked by an identity; `customer_ids` are all it is recorded under.
    """

    customer_id: str
    kind: CustomerKind
    entries: Sequence[Entry]
    next_page_token: str
    total: int
    persona: Persona | None
    episodes: Sequence[Episode]
    stage_path: Sequence[StageVisit]
    experience: Curve
    loyalty: Loyalty
    loyalty_event_ids: Sequence[UUID]
    points: Sequence[CustomerPoint]
    signals: Sequence[Signal]
    signal_places: Sequence[str]
    actions: Sequence[CustomerAction]
    share_of_wallet: ShareOfWallet | None
    spent: Sequence[Amount]
    customer_ids: Sequence[str]


@dataclass(frozen=True)
class _Whole:
    """A customer's whole history, its rows in the order in which they happened, and under which ids it is recorded."""

    number: int
    everyone: History
    reading: Reading
    order: Ints
    ids: dict[int, str]


async def customer_journey(
    snapshot: Snapshot, in_force: MapInForce, customer_id: str, *, page_size: int, page_token: str
) -> CustomerJourney:
    """Return a page of a customer's timeline, over the identities that were linked to them then.

    The pages of one walk hold the entries that were known when its first page was asked for, each once.

    Raises:
        NotFoundError: nothing was known of the customer.
        InvalidError: the token is not one of this question's.
    """
    # A map published between two pages would place the second by other rules than the first.
    map_version = f"{in_force.map_id}@{in_force.version}"
    question = ("timeline", customer_id, snapshot.as_of.isoformat(), map_version)
    occurred_at, position, cut = (*_BEGINNING, snapshot.cut)
    if page_token:
        occurred_at, position, cut = read_token(page_token, question, _TOKEN)
    whole = await _whole(snapshot, in_force, customer_id, cut)
    table = whole.reading.history.interactions
    occurred = table.occurred[whole.order]
    left, right = (int(np.searchsorted(occurred, microseconds(occurred_at), side)) for side in ("left", "right"))
    # Those of one time stand in the order of the store.
    start = left + int(np.searchsorted(table.position[whole.order[left:right]], position, "right"))
    entries = await entries_of(snapshot, whole, whole.order[start : start + page_size])
    more = start + page_size < len(whole.order)
    token = write_token(question, (entries[-1].occurred_at, entries[-1].position, cut)) if more else ""
    return await _about(snapshot, whole, entries, token)


async def newest_entries(snapshot: Snapshot, in_force: MapInForce, customer_id: str, count: int) -> CustomerJourney:
    """Return a customer's journey with the `count` entries that happened last. Raises NotFoundError."""
    whole = await _whole(snapshot, in_force, customer_id, snapshot.cut)
    entries = await entries_of(snapshot, whole, whole.order[-count:])
    return await _about(snapshot, whole, entries, "")


def _is_known(everyone: History, number: int) -> bool:
    """Whether anything happened to whoever has this number."""
    return number < len(everyone.owners) and bool(len(everyone.of_customer(int(everyone.owners[number])).interactions))


async def _unknown(snapshot: Snapshot, everyone: History, customer_id: str) -> NotFoundError:
    """Return what to raise where nothing is known; its detail `near` has the ids that one slip makes of this one."""
    keys = await among(snapshot.connection, Kind.CUSTOMER, slips(customer_id))
    numbers = {each: snapshot.model.columns.number_of(key) for each, key in keys.items()}
    known = sorted(each for each, number in numbers.items() if number is not None and _is_known(everyone, number))
    near = " or ".join(known[:NEAREST])
    meant = f"; did you mean {near}?" if near else ""
    told = f"nothing is known of customer {customer_id!r}{snapshot.then}{meant}"
    return NotFoundError("CUSTOMER_UNKNOWN", told, {"near": near} if near else None)


async def _whole(snapshot: Snapshot, in_force: MapInForce, customer_id: str, cut: int) -> _Whole:
    asked = await snapshot.number_of(customer_id)
    everyone = snapshot.history_before(cut)
    if asked is None or not _is_known(everyone, asked):
        raise await _unknown(snapshot, everyone, customer_id)
    number = int(everyone.owners[asked])
    mine = everyone.of_customer(number)
    keys = [everyone.vocabulary.customers[n] for n in np.flatnonzero(everyone.owners == number)]
    names = await texts_of(snapshot.connection, Kind.CUSTOMER, keys)
    own = everyone.vocabulary.customers[number]
    ids = {own: names.get(own, ""), **{key: names.get(key, "") for key in keys}}
    reading = Reading(mine, in_force.map, snapshot.model.placements(in_force))
    return _Whole(number, everyone, reading, mine.by_time, ids)


async def entries_of(snapshot: Snapshot, whole: _Whole, rows: Ints) -> list[Entry]:
    """Return these rows of a customer's history as entries, with what only their bodies tell."""
    reading = whole.reading
    history = reading.history
    positions = history.interactions.position[rows].tolist()
    bodies = {
        row["position"]: row
        for row in await snapshot.connection.fetch(
            """SELECT position, event_id, recorded_at, customer, body FROM interaction
               WHERE position = ANY($1::bigint[])""",
            positions,
        )
    }
    analyses = {
        row["interaction"]: row
        for row in await snapshot.connection.fetch(
            "SELECT interaction, failed, failure, body FROM analysis WHERE position = ANY($1::bigint[])",
            [
                int(history.analyses.position[number])
                for column in (history.analysis, history.failure)
                for number in column[rows]
                if number >= 0
            ],
        )
    }
    signal_ids = await _signals_of(snapshot, [row["event_id"] for row in bodies.values()])
    own, *_ = whole.ids
    found = []
    for row, position in zip(rows.tolist(), positions, strict=True):
        body, made = bodies[position], analyses.get(position)
        place = int(reading.place[row])
        found.append(
            Entry(
                event_id=body["event_id"],
                position=position,
                occurred_at=moment_of(history.interactions.occurred[row]),
                recorded_at=body["recorded_at"],
                interaction=_DECODE_INTERACTION(body["body"]).interaction or Interaction(),
                touchpoint_id=reading.touchpoints[place][1].touchpoint_id if place >= 0 else "",
                analysis=_DECODE_ANALYSIS(made["body"]) if made is not None and not made["failed"] else None,
                analysis_failure=made["failure"] if made is not None else "",
                signal_ids=tuple(signal_ids[body["event_id"]]),
                recorded_under=whole.ids[body["customer"]] if body["customer"] != own else "",
            )
        )
    return found


async def _signals_of(snapshot: Snapshot, event_ids: Sequence[UUID]) -> dict[UUID, list[str]]:
    rows = await snapshot.connection.fetch(
        """SELECT e.event_id, s.signal_id FROM signal_evidence e JOIN signal s USING (signal_id)
           WHERE e.event_id = ANY($1::uuid[]) AND s.position < $2 ORDER BY s.position""",
        event_ids,
        snapshot.cut,
    )
    found = defaultdict(list)
    for row in rows:
        found[row["event_id"]].append(row["signal_id"])
    return found


async def _about(snapshot: Snapshot, whole: _Whole, entries: Sequence[Entry], token: str) -> CustomerJourney:
    reading = whole.reading
    history = reading.history
    table = history.interactions
    moment = snapshot_moment(snapshot, whole.everyone)
    rules = rules_of(reading.map_.loyalty)
    stands = loyalty(history, rules, moment)
    evidence = stands.rows[-_NEWEST:]
    felt = experience(history.felt, whole.order)
    episodes = _episodes(whole)
    felt_in = [experience(history.felt, np.array(rows, np.int64)) for rows in episodes]
    moments = {row for each in (felt, *felt_in) for row in (each.peak, each.end) if row is not None}
    event_ids = await _event_ids(snapshot, history, [*moments, *felt.rows[-MAX_PARTS:], *evidence])
    kinds = table.kind[table.kind > 0]
    raised = await _newest_signals(snapshot, whole)
    money = spent(history, since=np.iinfo(np.int64).min, until=moment)
    return CustomerJourney(
        customer_id=next(iter(whole.ids.values())),
        # The kind is the latest that was told.
        kind=CustomerKind.from_number(int(kinds[-1]) if len(kinds) else 0),
        entries=entries,
        next_page_token=token,
        total=len(table),
        persona=reading.persona(0),
        episodes=await _told(snapshot, whole, episodes, [_curve(reading, each, (), event_ids) for each in felt_in]),
        stage_path=_stage_path(whole)[-MAX_PARTS:],
        experience=_curve(reading, felt, felt.rows[-MAX_PARTS:], event_ids),
        loyalty=stands,
        loyalty_event_ids=[event_ids[row] for row in evidence],
        points=_points(reading),
        signals=raised,
        signal_places=places(reading, raised),
        actions=await _newest_actions(snapshot, whole),
        share_of_wallet=share_of_wallet(history, moment),
        spent=[amount(currency, int(total[0])) for currency, total in sorted(money.items())],
        customer_ids=list(whole.ids.values()),
    )


def snapshot_moment(snapshot: Snapshot, history: History) -> int:
    """Return the time, in microseconds, that a question is asked for: `as_of`, or when the last event was recorded."""
    return history.last_recorded if snapshot.as_of == NOW else microseconds(snapshot.as_of)


async def _event_ids(snapshot: Snapshot, history: History, rows: Sequence[int]) -> dict[int, UUID]:
    positions = {int(history.interactions.position[row]): row for row in rows}
    found = await snapshot.connection.fetch(
        "SELECT position, event_id FROM interaction WHERE position = ANY($1::bigint[])", list(positions)
    )
    return {positions[row["position"]]: row["event_id"] for row in found}


def _curve(reading: Reading, felt: Experience, shown: Sequence[int], event_ids: dict[int, UUID]) -> Curve:
    history = reading.history

    def moment(row: int) -> Moment:
        place = int(reading.place[row])
        raw = history.vocabulary.touchpoints[int(history.interactions.touchpoint[row])]
        touchpoint = reading.touchpoints[place][1] if place >= 0 else None
        return Moment(
            event_ids[row],
            moment_of(history.interactions.occurred[row]),
            float(history.felt[row]),
            touchpoint.touchpoint_id if touchpoint else "",
            touchpoint.name if touchpoint else raw.touchpoint,
        )

    return Curve(
        moments=[moment(row) for row in shown],
        peak=None if felt.peak is None else moment(felt.peak),
        end=None if felt.end is None else moment(felt.end),
        lasting_impression=felt.lasting_impression,
        mean=felt.mean,
    )


def _episodes(whole: _Whole) -> list[list[int]]:
    """Return the rows of each of the last episodes, by when they began."""
    members: dict[int, list[int]] = defaultdict(list)
    numbers = whole.reading.episode
    for row in whole.order.tolist():
        members[int(numbers[row])].append(row)
    return list(members.values())[-MAX_PARTS:]


async def _told(
    snapshot: Snapshot, whole: _Whole, episodes: Sequence[Sequence[int]], curves: Sequence[Curve]
) -> list[Episode]:
    reading = whole.reading
    table = reading.history.interactions
    ignored = reading.map_.episodes is not None and reading.map_.episodes.ignore_ids
    named = [int(table.position[rows[0]]) for rows in episodes if not ignored and table.episode[rows[0]] != 0]
    texts = {
        row["position"]: row["episode_id"]
        for row in await snapshot.connection.fetch(
            "SELECT position, episode_id FROM interaction WHERE position = ANY($1::bigint[])", named
        )
    }
    return [
        Episode(
            episode_id=texts.get(int(table.position[rows[0]]), ""),
            started_at=moment_of(table.occurred[rows[0]]),
            ended_at=moment_of(table.occurred[rows[-1]]),
            interactions=len(rows),
            goal_ids=_goals(reading, rows),
            experience=curve,
        )
        for rows, curve in zip(episodes, curves, strict=True)
    ]


def _goals(reading: Reading, rows: Sequence[int]) -> tuple[str, ...]:
    reached: dict[str, None] = {}
    for row in rows:
        bits = int(reading.goals[row])
        reached |= {goal.goal_id: None for n, goal in enumerate(reading.map_.goals) if bits >> n & 1}
    return tuple(reached)


def _stage_path(whole: _Whole) -> list[StageVisit]:
    reading = whole.reading
    occurred = reading.history.interactions.occurred
    placed = [row for row in whole.order.tolist() if reading.stage[row] >= 0]
    seen: Counter[int] = Counter()
    path: list[StageVisit] = []
    start = 0
    for n in range(1, len(placed) + 1):
        if n < len(placed) and reading.stage[placed[n]] == reading.stage[placed[start]]:
            continue
        number = int(reading.stage[placed[start]])
        stage = reading.map_.stages[number]
        entered, left = (moment_of(occurred[placed[at]]) for at in (start, n - 1))
        path.append(StageVisit(stage.stage_id, stage.name, entered, left, n - start, seen[number]))
        seen[number] += 1
        start = n
    return path


def _points(reading: Reading) -> list[CustomerPoint]:
    history = reading.history
    members: dict[tuple[int, int, int, str], list[int]] = defaultdict(list)
    for row in np.flatnonzero(np.isin(history.point, [kind.number for kind in KINDS])).tolist():
        place = int(reading.place[row])
        raw = history.vocabulary.touchpoints[int(history.interactions.touchpoint[row])]
        name = reading.touchpoints[place][1].name if place >= 0 else raw.touchpoint
        members[int(history.point[row]), int(history.need[row]), place, name].append(row)
    found = [
        CustomerPoint(
            kind=PointKind.from_number(kind),
            need_path=history.vocabulary.needs[need],
            touchpoint_id=reading.touchpoints[place][1].touchpoint_id if place >= 0 else "",
            touchpoint_name=name,
            mentions=len(rows),
            mean_sentiment=float(history.score[rows].mean()),
            last_at=moment_of(history.interactions.occurred[rows].max()),
        )
        for (kind, need, place, name), rows in members.items()
    ]
    return sorted(found, key=lambda each: (-each.mentions, each.kind.number, each.need_path, each.touchpoint_name))


async def _newest_signals(snapshot: Snapshot, whole: _Whole) -> list[Signal]:
    marks = whole.everyone.signals
    return await signals_at(snapshot, marks.position[_mine(whole, marks.customer)][-_NEWEST:].tolist())


def _mine(whole: _Whole, customer: Index) -> Ints:
    known = np.flatnonzero(customer >= 0)
    mine: Ints = known[whole.everyone.owners[customer[known]] == whole.number]
    return mine


async def _newest_actions(snapshot: Snapshot, whole: _Whole) -> list[CustomerAction]:
    marks = whole.everyone.actions
    opened = marks.position[_mine(whole, marks.customer)][-_NEWEST:].tolist()
    rows = await snapshot.connection.fetch(
        """SELECT action_id, kind, state, result, title, signal_id, recorded_at FROM action_change
           WHERE position < $2
             AND action_id IN (SELECT action_id FROM action_change WHERE position = ANY($1::bigint[]))
           ORDER BY position""",
        opened,
        snapshot.cut,
    )
    changes = defaultdict(list)
    for row in rows:
        changes[row["action_id"]].append(row)
    return [_action(each) for each in reversed(changes.values())]


def _action(changes: Sequence[Any]) -> CustomerAction:
    """Fold what became of an action, as docs/actions.md has it."""
    first, last = changes[0], changes[-1]
    state, result = ActionState.OPEN, ActionResult.UNSPECIFIED
    for change in changes[1:]:
        told = ActionState.from_number(change["state"])
        if told is ActionState.UNSPECIFIED:
            # Opened again.
            state = ActionState.OPEN if state is ActionState.DECLINED else ActionState.ACCEPTED
            result = ActionResult.UNSPECIFIED
        elif not (told is ActionState.IN_PROGRESS and state is ActionState.REMEDIED):
            state = told
        result = ActionResult.from_number(change["result"] or result.number)
    return CustomerAction(
        action_id=first["action_id"],
        kind=ActionKind.from_number(first["kind"]),
        state=state,
        result=result,
        title=first["title"],
        signal_id=first["signal_id"],
        opened_at=first["recorded_at"],
        updated_at=last["recorded_at"],
    )
