"""What is asked of actions: lists from a read model in PostgreSQL, single actions from their own stream."""

import base64
import binascii
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionCompleted,
    ActionKind,
    ActionOpened,
    ActionResult,
    ActionState,
)
from recorrido.ingest.v1.events import AnonymousAction, CustomerAnonymized, IdentityLinked, IdentityUnlinked
from services.actions.domain import (
    MAX_CUSTOMER_ID,
    MAX_ID,
    Action,
    ActionDecider,
    ActionEvent,
    Rules,
    evolve,
    stream_of,
    unknown,
)
from services.foundation import telemetry
from services.foundation.errors import InvalidError, UnavailableError, Violation
from services.foundation.events import Event, Registry, derived_id
from services.foundation.eventstore import EventStore
from services.foundation.execute import Folded
from services.foundation.projection import POSTGRES_DOWN, Fact, in_order

MAX_PAGE = 1_000
DEFAULT_PAGE = 100

#: Title of what is left of an action whose customer was erased.
ERASED = "(erased)"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change of an action. `trace_id` is empty where it was not traced."""

    event_type: str
    event_id: str
    recorded_at: datetime
    actor: str
    summary: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class ActionHistory:
    """An action and all that ever happened to it, oldest first."""

    action: Folded[Action]
    entries: Sequence[HistoryEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionQuery:
    """Which actions to list; None or empty: whatever it is. Raises InvalidError."""

    state: ActionState | None = None
    kind: ActionKind | None = None
    customer_id: str = ""
    owner: str = ""
    page_size: int = DEFAULT_PAGE
    page_token: str = ""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("customer_id", self.customer_id, MAX_CUSTOMER_ID)
        rules.text("owner", self.owner, MAX_ID)
        rules.require(1 <= self.page_size <= MAX_PAGE, "page_size", f"between 1 and {MAX_PAGE:,}")
        rules.enforce()

    @property
    def filters(self) -> dict[str, str]:
        """Columns and the values they must have."""
        given = {"state": self.state, "kind": self.kind, "customer_id": self.customer_id, "owner": self.owner}
        return {column: str(value) for column, value in given.items() if value}


@dataclass(frozen=True, slots=True)
class ActionPage:
    """One page, newest first. `total` counts all that match; `next_page_token` is empty on the last page."""

    actions: Sequence[Folded[Action]]
    next_page_token: str
    total: int


class _PageToken:
    """Where the next page starts: behind the action opened at a position, under the same filters."""

    _LAYOUT = struct.Struct(">q8s")

    @classmethod
    def encode(cls, query: ActionQuery, position: int) -> str:
        return base64.urlsafe_b64encode(cls._LAYOUT.pack(position, cls._digest(query))).decode()

    @classmethod
    def decode(cls, query: ActionQuery) -> int:
        try:
            position, digest = cls._LAYOUT.unpack(base64.b64decode(query.page_token, altchars=b"-_", validate=True))
        except (ValueError, binascii.Error, struct.error):
            raise InvalidError([Violation("page_token", "a next_page_token, as it was given")]) from None
        if digest != cls._digest(query):
            raise InvalidError([Violation("page_token", "used with the filters it was given for")])
        return int(position)

    @staticmethod
    def _digest(query: ActionQuery) -> bytes:
        return hashlib.sha256(repr(sorted(query.filters.items())).encode()).digest()[:8]


_COLUMNS = [each.name for each in fields(Action) if each.name != "requests"]


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
            revision bigint NOT NULL,
            opened_position bigint NOT NULL UNIQUE
        );
        CREATE INDEX ON action (state, opened_position);
        CREATE INDEX ON action (customer_id, opened_position);
        CREATE INDEX ON action (owner, opened_position);

        -- Whose an identity is now; NULL: nobody's. Both are customer ids.
        CREATE TABLE identity_link (
            identity_id text PRIMARY KEY,
            customer_id text,
            position bigint NOT NULL
        );
        CREATE INDEX ON identity_link (customer_id);
    """

    async def apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        await in_order(connection, facts, CustomerAnonymized, self._add, self._replace)

    async def _replace(self, connection: Any, fact: Fact) -> None:
        """Forget the erased customer's actions; what statistics need of them stays under a pseudonym."""
        event: CustomerAnonymized = fact.event
        positions = [int(position) for position in event.erased_positions]
        await connection.execute("DELETE FROM action WHERE opened_position = ANY($1::bigint[])", positions)
        await connection.execute("DELETE FROM identity_link WHERE position = ANY($1::bigint[])", positions)
        await connection.executemany(_UPSERT, [_anonymous_row(event.receipt_id, action) for action in event.actions])

    async def _add(self, connection: Any, facts: Sequence[Fact]) -> None:
        changes = [fact for fact in facts if isinstance(fact.event, IdentityLinked | IdentityUnlinked)]
        await connection.executemany(
            """INSERT INTO identity_link VALUES ($1, $2, $3) ON CONFLICT (identity_id)
               DO UPDATE SET customer_id = excluded.customer_id, position = excluded.position""",
            [(f.event.identity_customer_id, _owner(f.event), f.recorded.position) for f in changes],
        )
        await self._apply_actions(connection, [fact for fact in facts if isinstance(fact.event, ActionEvent)])

    async def _apply_actions(self, connection: Any, facts: Sequence[Fact]) -> None:
        # The rows are folded by the domain's own evolve, so that a list can never tell another story than a stream.
        ids = list({fact.event.action_id for fact in facts})
        found = await connection.fetch("SELECT * FROM action WHERE action_id = ANY($1)", ids)
        states = {row["action_id"]: (_state(row), row["opened_position"]) for row in found}
        revisions: dict[str, int] = {}
        for fact in facts:
            key = fact.event.action_id
            state, opened_position = states.get(key, (Action(), fact.recorded.position))
            states[key] = (replace(evolve(state, fact.event), requests={}), opened_position)
            revisions[key] = fact.recorded.revision
        await connection.executemany(
            _UPSERT,
            [
                (*(getattr(state, column) for column in _COLUMNS), revisions[key], position)
                for key, (state, position) in states.items()
            ],
        )


def _owner(change: IdentityLinked | IdentityUnlinked) -> str | None:
    return change.customer_id if isinstance(change, IdentityLinked) else None


_WRITTEN = [*_COLUMNS, "revision", "opened_position"]
_UPSERT = (
    f"INSERT INTO action ({', '.join(_WRITTEN)}) "  # noqa: S608 - nothing but names of ours
    f"VALUES ({', '.join(f'${number}' for number in range(1, len(_WRITTEN) + 1))}) "
    f"ON CONFLICT (action_id) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in _WRITTEN)}"
)


def _anonymous_row(receipt_id: str, left: AnonymousAction) -> Sequence[Any]:
    action = Action(
        action_id=str(derived_id("anonymous", receipt_id, left.position)),
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
    return (*(getattr(action, column) for column in _COLUMNS), 0, int(left.position))


def _state(row: Any) -> Action:
    given = {column: row[column] for column in _COLUMNS}
    return Action(
        **{
            **given,
            "kind": ActionKind(row["kind"]),
            "state": ActionState(row["state"]),
            "result": ActionResult(row["result"]),
            "reasons": tuple(row["reasons"]),
        }
    )


# Of the customer and of the identities linked to them, also where one of these is asked for.
_OF_CUSTOMER = """customer_id IN (
    WITH asked AS (SELECT COALESCE((SELECT customer_id FROM actions.identity_link WHERE identity_id = {0}), {0}) AS id)
    SELECT id FROM asked UNION SELECT identity_id FROM actions.identity_link JOIN asked ON customer_id = id)"""


class ActionQueries:
    """Answers questions about actions."""

    def __init__(self, store: EventStore, pool: Any) -> None:
        self._store = store
        self._pool = pool
        self._registry = Registry(ActionDecider.types)

    async def get(self, action_id: str) -> ActionHistory:
        """Return the action as it stands now.

        Raises:
            InvalidError: `action_id` is empty, too long or no text.
            NotFoundError: there is no such action.
            UnavailableError: the store does not answer.
        """
        rules = Rules()
        rules.text("action_id", action_id, MAX_ID, required=True)
        rules.enforce()
        state, revision, entries = Action(), -1, []
        for recorded in await self._store.read(stream_of(action_id)):
            revision = recorded.revision
            if recorded.type_name not in self._registry:
                continue
            event = self._registry.decode(recorded)
            state = evolve(state, event)
            entries.append(
                HistoryEntry(
                    event_type=recorded.type_name,
                    event_id=str(recorded.event_id),
                    recorded_at=recorded.recorded_at,
                    actor=event.actor,
                    summary=summary(event),
                    trace_id=telemetry.trace_id_of(recorded.metadata),
                )
            )
        if not entries:
            raise unknown(action_id)
        return ActionHistory(Folded(state, revision), entries)

    async def list(self, query: ActionQuery) -> ActionPage:
        """Return one page. Actions opened while somebody pages come before the first page, never in between.

        Raises:
            InvalidError: the page token is not ours, or for other filters.
            UnavailableError: PostgreSQL does not answer.
        """
        values: list[Any] = list(query.filters.values())
        conditions = [
            _OF_CUSTOMER.format(f"${number}") if column == "customer_id" else f"{column} = ${number}"
            for number, column in enumerate(query.filters, 1)
        ]
        matching = f"FROM actions.action WHERE {' AND '.join(conditions) or 'true'}"
        behind = ""
        page_values = [*values, query.page_size + 1]
        if query.page_token:
            page_values.append(_PageToken.decode(query))
            behind = f" AND opened_position < ${len(page_values)}"
        page = f"SELECT * {matching}{behind} ORDER BY opened_position DESC LIMIT ${len(values) + 1}"
        try:
            # One snapshot, so that the total fits the page.
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                total = await connection.fetchval(f"SELECT count(*) {matching}", *values)
                rows = await connection.fetch(page, *page_values)
        except POSTGRES_DOWN as error:
            raise UnavailableError("PostgreSQL", type(error).__name__) from error
        shown = rows[: query.page_size]
        token = _PageToken.encode(query, shown[-1]["opened_position"]) if len(rows) > len(shown) else ""
        return ActionPage([Folded(_state(row), row["revision"]) for row in shown], token, total)


def summary(event: ActionEvent) -> str:
    """Return what `event` tells, in words for people; its actor is told beside it."""
    match event:
        case ActionOpened():
            return f"opened the {event.kind.name.lower()}: {event.title}"
        case ActionAccepted():
            return "accepted it" if event.owner == event.actor else f"accepted it for {event.owner}"
        case ActionCompleted():
            note = f" ({event.note})" if event.note else ""
            return f"completed it: {event.result.name.lower().replace('_', ' ')}{note}"
