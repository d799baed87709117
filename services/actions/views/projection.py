"""The read model of actions in PostgreSQL: a row per action, its coming deadlines, and counts for the board.

A list or a board of 200,000 actions is answered without looking at more rows than are shown: every filter has an index
in the order of the list, and what would have to be counted is counted when it changes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from recorrido.actions.v1.events import ActionKind, ActionResult, ActionState, Deadline, Obligation, Priority, Target
from recorrido.ingest.v1.events import AnonymousAction, CustomerAnonymized, IdentityLinked, IdentityUnlinked
from services.actions.domain.action import Action, ActionDecider, evolve
from services.foundation.events import Event, derived_id
from services.foundation.projection import Fact, in_order, position_of, positions_of

#: What the board is by, and the column that tells it; every action is counted once in each.
DIMENSIONS: Mapping[str, str] = {"state": "", "owner": "owner", "touchpoint": "touchpoint", "need": "need_path"}
#: What is counted as it changes: that, and what may hold for so many actions that counting them would take long.
TALLIED: Mapping[str, str] = {**DIMENSIONS, "priority": "priority", "playbook": "playbook_id"}

#: Title of what is left of an action whose customer was erased.
ERASED = "(erased)"
#: Columns that hold a field of `Action` as it is.
_PLAIN = (
    "action_id",
    "kind",
    "state",
    "signal_id",
    "customer_id",
    "title",
    "reasons",
    "touchpoint",
    "need_path",
    "owner",
    "result",
    "opened_at",
    "updated_at",
    "closed_at",
    "priority",
    "accept_by",
    "due_at",
    "late",
    "escalated_to",
    "improvement_id",
    "playbook_id",
    "playbook_version",
    "playbook_rule",
    "cause_id",
    "reopened",
    "rescheduled",
)
#: Fields that are kept as JSON, as nobody filters by them.
_JSON = ("deadlines", "target")
_WRITTEN = (*_PLAIN, *_JSON, "revision", "opened_position", "due_us")
#: `due_us` of what has no due time: behind every moment.
NEVER = 2**63 - 1
assert {*_PLAIN, *_JSON, "requests"} == {each.name for each in fields(Action)}

_UPSERT = (
    f"INSERT INTO action ({', '.join(_WRITTEN)}) "  # noqa: S608 - nothing but names of ours
    f"VALUES ({', '.join(f'${number}' for number in range(1, len(_WRITTEN) + 1))}) "
    f"ON CONFLICT (action_id) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in _WRITTEN)}"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ENCODE = msgspec.json.encode
_DEADLINES: msgspec.json.Decoder[tuple[Deadline, ...]] = msgspec.json.Decoder(tuple[Deadline, ...])
_TARGET: msgspec.json.Decoder[Target | None] = msgspec.json.Decoder(Target | None)

#: dimension, key, kind, state
_Tally = tuple[str, str, ActionKind, ActionState]


class ActionsProjection:
    """Table `action`: each action as its stream folds to. `opened_position` orders them, oldest first."""

    name = "actions"
    types: Sequence[type[Event]] = (*ActionDecider.types, IdentityLinked, IdentityUnlinked, CustomerAnonymized)
    ddl = """
        CREATE TABLE action (
            action_id text PRIMARY KEY,
            kind text NOT NULL,
            state text NOT NULL,
            signal_id text NOT NULL,
            customer_id text NOT NULL,
            title text NOT NULL,
            reasons text[] NOT NULL,
            touchpoint text NOT NULL,
            need_path text NOT NULL,
            owner text NOT NULL,
            result text NOT NULL,
            opened_at timestamptz,
            updated_at timestamptz,
            closed_at timestamptz,
            priority text NOT NULL,
            accept_by timestamptz,
            due_at timestamptz,
            late text[] NOT NULL,
            escalated_to text NOT NULL,
            improvement_id text NOT NULL,
            playbook_id text NOT NULL,
            playbook_version int NOT NULL,
            playbook_rule text NOT NULL,
            cause_id text NOT NULL,
            reopened int NOT NULL,
            rescheduled int NOT NULL,
            deadlines bytea NOT NULL,
            target bytea NOT NULL,
            revision bigint NOT NULL,
            opened_position bigint NOT NULL UNIQUE,
            due_us bigint NOT NULL, -- what falls due next, in microseconds of Unix time
            overdue boolean GENERATED ALWAYS AS (late <> '{}') STORED
        );
        -- In the order of the list, for each filter.
        CREATE INDEX ON action (state, opened_position);
        CREATE INDEX ON action (kind, state, opened_position);
        CREATE INDEX ON action (customer_id, opened_position);
        CREATE INDEX ON action (owner, opened_position);
        CREATE INDEX ON action (touchpoint, opened_position);
        CREATE INDEX ON action (need_path, opened_position);
        CREATE INDEX ON action (priority, opened_position);
        CREATE INDEX ON action (playbook_id, opened_position);
        CREATE INDEX ON action (improvement_id, opened_position) WHERE improvement_id <> '';
        CREATE INDEX ON action (opened_position) WHERE overdue;
        -- The same by due time, for the filters that let more through than is quickly sorted.
        CREATE INDEX ON action (due_us, opened_position);
        CREATE INDEX ON action (state, due_us, opened_position);
        CREATE INDEX ON action (priority, due_us, opened_position);
        CREATE INDEX ON action (playbook_id, due_us, opened_position);
        -- The oldest of each line of the board.
        CREATE INDEX ON action (kind, state, opened_at);
        CREATE INDEX ON action (owner, kind, state, opened_at);
        CREATE INDEX ON action (touchpoint, kind, state, opened_at);
        CREATE INDEX ON action (need_path, kind, state, opened_at);

        -- Moments to come.
        CREATE TABLE deadline (
            action_id text,
            deadline_id text,
            at timestamptz NOT NULL,
            PRIMARY KEY (action_id, deadline_id)
        );
        CREATE INDEX ON deadline (at);

        -- How many there are of each kind and state, in all and of each owner, touchpoint, need, priority, playbook.
        CREATE TABLE tally (
            dimension text,
            key text,
            kind text,
            state text,
            count bigint NOT NULL,
            overdue bigint NOT NULL,
            opened_s bigint NOT NULL, -- the sum of opened_at, each in whole seconds of Unix time, so that it is exact
            PRIMARY KEY (dimension, key, kind, state)
        );

        -- Whose an identity is now; NULL: nobody's. Both are customer ids.
        CREATE TABLE identity_link (
            identity_id text PRIMARY KEY,
            customer_id text,
            position bigint NOT NULL
        );
        CREATE INDEX ON identity_link (customer_id);
    """

    async def apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        await in_order(connection, facts, CustomerAnonymized, self._add, forget=self._forget, leave=self._leave)

    async def _forget(self, connection: Any, fact: Fact) -> None:
        """Forget the erased customer's actions."""
        positions = positions_of(fact.event.erased_positions)
        erased = "DELETE FROM action WHERE opened_position = ANY($1::bigint[]) RETURNING *"
        before = {row["action_id"]: action_of(row) for row in await connection.fetch(erased, positions)}
        await connection.execute("DELETE FROM deadline WHERE action_id = ANY($1)", list(before))
        await connection.execute("DELETE FROM identity_link WHERE position = ANY($1::bigint[])", positions)
        await _write_tallies(connection, before, {})

    async def _leave(self, connection: Any, fact: Fact) -> None:
        """Keep what statistics need of the erased actions under a pseudonym."""
        event: CustomerAnonymized = fact.event
        left = {str(derived_id("anonymous", event.receipt_id, each.position)): each for each in event.actions}
        after = {key: _anonymous(key, each) for key, each in left.items()}
        await connection.executemany(
            _UPSERT, [_row(action, 0, position_of(left[key].position)) for key, action in after.items()]
        )
        await _write_tallies(connection, {}, after)

    async def _add(self, connection: Any, facts: Sequence[Fact]) -> None:
        changes = [fact for fact in facts if isinstance(fact.event, IdentityLinked | IdentityUnlinked)]
        await connection.executemany(
            """INSERT INTO identity_link VALUES ($1, $2, $3) ON CONFLICT (identity_id)
               DO UPDATE SET customer_id = excluded.customer_id, position = excluded.position""",
            [(f.event.identity_customer_id, _owner(f.event), f.recorded.position) for f in changes],
        )
        if others := [fact for fact in facts if not isinstance(fact.event, IdentityLinked | IdentityUnlinked)]:
            await self._apply_actions(connection, others)

    async def _apply_actions(self, connection: Any, facts: Sequence[Fact]) -> None:
        # The rows are folded by the domain's own evolve, so that a list can never tell another story than a stream.
        ids = list({fact.event.action_id for fact in facts})
        found = await connection.fetch("SELECT * FROM action WHERE action_id = ANY($1)", ids)
        before = {row["action_id"]: action_of(row) for row in found}
        positions = {row["action_id"]: row["opened_position"] for row in found}
        states, revisions = dict(before), dict[str, int]()
        for fact in facts:
            key = fact.event.action_id
            states[key] = replace(evolve(states.get(key, Action()), fact.event), requests={})
            revisions[key] = fact.recorded.revision
            positions.setdefault(key, fact.recorded.position)
        await connection.executemany(
            _UPSERT, [_row(state, revisions[key], positions[key]) for key, state in states.items()]
        )
        await _write_deadlines(connection, before, states)
        await _write_tallies(connection, before, states)


def _owner(change: IdentityLinked | IdentityUnlinked) -> str | None:
    return change.customer_id if isinstance(change, IdentityLinked) else None


def _anonymous(action_id: str, left: AnonymousAction) -> Action:
    return Action(
        action_id=action_id,
        kind=left.kind,
        state=left.state,
        customer_id=left.pseudonym,
        title=ERASED,
        touchpoint=left.touchpoint,
        need_path=left.need_path,
        result=left.result,
        opened_at=left.opened_at,
        updated_at=left.updated_at,
    )


def _row(state: Action, revision: int, position: int) -> tuple[Any, ...]:
    plain = (getattr(state, column) for column in _PLAIN)
    due = state.next_due
    due_us = NEVER if due is None else (due - _EPOCH) // timedelta(microseconds=1)
    return (*plain, *(_ENCODE(getattr(state, column)) for column in _JSON), revision, position, due_us)


def action_of(row: Any) -> Action:
    """Return the action that a row of `action` holds."""
    return Action(
        **{
            **{column: row[column] for column in _PLAIN},
            "kind": ActionKind(row["kind"]),
            "state": ActionState(row["state"]),
            "result": ActionResult(row["result"]),
            "priority": Priority(row["priority"]),
            "reasons": tuple(row["reasons"]),
            "late": tuple(map(Obligation, row["late"])),
            "deadlines": _DEADLINES.decode(row["deadlines"]),
            "target": _TARGET.decode(row["target"]),
        }
    )


async def _write_deadlines(connection: Any, before: Mapping[str, Action], after: Mapping[str, Action]) -> None:
    changed = [key for key, state in after.items() if state.deadlines != before.get(key, Action()).deadlines]
    if not changed:
        return
    await connection.execute("DELETE FROM deadline WHERE action_id = ANY($1)", changed)
    await connection.executemany(
        "INSERT INTO deadline VALUES ($1, $2, $3)",
        [(key, each.deadline_id, each.at) for key in changed for each in after[key].deadlines],
    )


async def _write_tallies(connection: Any, before: Mapping[str, Action], after: Mapping[str, Action]) -> None:
    counts, late, opened = Counter[_Tally](), Counter[_Tally](), Counter[_Tally]()
    for states, sign in ((before, -1), (after, 1)):
        for state in states.values():
            at = int(state.opened_at.timestamp()) if state.opened_at else 0
            for dimension, column in TALLIED.items():
                tally = dimension, getattr(state, column) if column else "", state.kind, state.state
                counts[tally] += sign
                late[tally] += sign * bool(state.late)
                opened[tally] += sign * at
    await connection.executemany(
        """INSERT INTO tally VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (dimension, key, kind, state)
           DO UPDATE SET count = tally.count + excluded.count, overdue = tally.overdue + excluded.overdue,
                         opened_s = tally.opened_s + excluded.opened_s""",
        [
            (*tally, counts[tally], late[tally], opened[tally])
            for tally in counts
            if counts[tally] or late[tally] or opened[tally]
        ],
    )
