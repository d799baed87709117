"""Lists of actions and the board, from the read model."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any

import msgspec

from recorrido.actions.v1.events import ActionKind, ActionState, Priority
from services.actions.domain.action import CLOSED, Action
from services.actions.domain.rules import MAX_ID
from services.actions.views.projection import DIMENSIONS, TALLIED, action_of
from services.foundation.errors import InvalidError, Violation
from services.foundation.execute import Folded
from services.foundation.paging import read_token, write_token
from services.foundation.projection import answerable
from services.foundation.rules import MAX_CUSTOMER_ID, Rules

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
#: Where what matches has to be counted one by one, it is counted so far.
MAX_COUNTED = 100_000
#: Lines of the board for each of owner, touchpoint and need.
BOARD_LINES = 100


class Order(Enum):
    """In what order actions are listed, numbered as in the contract."""

    NEWEST = 1
    OLDEST = 2
    DUE = 3


#: Of each order the columns that it is by, and whether they descend.
_BY: dict[Order, tuple[tuple[str, ...], bool]] = {
    Order.NEWEST: (("opened_position",), True),
    Order.OLDEST: (("opened_position",), False),
    Order.DUE: (("due_us", "opened_position"), False),
}
_Bigint = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
#: Decodes tokens whose place are the values of an order's columns.
_PLACE = msgspec.json.Decoder(tuple[str, tuple[_Bigint, ...]])


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionQuery:
    """Which actions to list; None or empty: whatever it is. Raises InvalidError."""

    state: ActionState | None = None
    kind: ActionKind | None = None
    customer_id: str = ""
    owner: str = ""
    touchpoint: str = ""
    need_path: str = ""
    priority: Priority | None = None
    improvement_id: str = ""
    playbook_id: str = ""
    overdue: bool | None = None
    order: Order = Order.NEWEST
    page_size: int = DEFAULT_PAGE
    page_token: str = ""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("customer_id", self.customer_id, MAX_CUSTOMER_ID)
        rules.text("owner", self.owner, MAX_ID)
        rules.text("touchpoint", self.touchpoint, MAX_ID)
        rules.text("need_path", self.need_path, MAX_CUSTOMER_ID)
        rules.text("improvement_id", self.improvement_id, MAX_ID)
        rules.text("playbook_id", self.playbook_id, MAX_ID)
        rules.require(1 <= self.page_size <= MAX_PAGE, "page_size", f"between 1 and {MAX_PAGE:,}")
        rules.enforce()

    @property
    def filters(self) -> dict[str, Any]:
        """Columns and the values they must have."""
        given = {
            "state": self.state,
            "kind": self.kind,
            "customer_id": self.customer_id,
            "owner": self.owner,
            "touchpoint": self.touchpoint,
            "need_path": self.need_path,
            "priority": self.priority,
            "improvement_id": self.improvement_id,
            "playbook_id": self.playbook_id,
        }
        found: dict[str, Any] = {column: str(value) for column, value in given.items() if value}
        if self.overdue is not None:
            found["overdue"] = self.overdue
        return found


@dataclass(frozen=True, slots=True)
class ActionPage:
    """One page. `next_page_token` is empty on the last one.

    `total` counts all that match, whatever the page; with `more` there are more than that.
    """

    actions: Sequence[Folded[Action]]
    next_page_token: str
    total: int
    more: bool


def _question(query: ActionQuery) -> list[str]:
    return [query.order.name, *(repr(each) for each in sorted(query.filters.items()))]


#: SQL and the values of its parameters.
Statement = tuple[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class BoardLine:
    """How many actions there are of one key, and how old they are: seconds since they were opened."""

    key: str
    kind: ActionKind
    count: int
    overdue: int
    mean_age_s: float
    oldest_age_s: float


@dataclass(frozen=True, slots=True)
class Board:
    """Lines per dimension (`state`, `owner`, `touchpoint`, `need`), largest first, as of a moment, UTC.

    By state all actions are counted, by everything else those that are not closed.
    """

    lines: dict[str, Sequence[BoardLine]]
    as_of: datetime


# Of the customer and of the identities linked to them, also where one of these is asked for.
_OF_CUSTOMER = """customer_id IN (
    WITH asked AS (SELECT COALESCE((SELECT customer_id FROM actions.identity_link WHERE identity_id = {0}), {0}) AS id)
    SELECT id FROM asked UNION SELECT identity_id FROM actions.identity_link JOIN asked ON customer_id = id)"""

_COUNTED_BY = {column: dimension for dimension, column in TALLIED.items() if column}


def board_sql(dimension: str, column: str) -> str:
    """Return the statement for one dimension: $1 the kind or '', $2 how many lines at most."""
    key, of_action = ("key", f"a.{column} = t.key AND ") if column else ("state", "")
    closed = " OR ".join(
        f"(kind = '{kind}' AND state IN ({', '.join(repr(str(s)) for s in states)}))"
        for kind, states in CLOSED.items()
        if states
    )
    counted = f"dimension = '{dimension}' AND count > 0" + (f" AND NOT ({closed})" if column else "")
    # Only the lines that are shown are asked for their oldest, one look at an index for each of their states.
    return f"""
        WITH lines AS (
            SELECT {key} AS line, kind, sum(count) AS count, sum(overdue) AS overdue, sum(opened_s) AS opened_s
            FROM actions.tally WHERE {counted} AND ($1 = '' OR kind = $1)
            GROUP BY 1, 2 ORDER BY sum(count) DESC, 1, 2 LIMIT $2
        )
        SELECT *, (
            SELECT min(oldest.opened_at) FROM actions.tally t CROSS JOIN LATERAL (
                SELECT a.opened_at FROM actions.action a
                WHERE {of_action} a.kind = t.kind AND a.state = t.state ORDER BY a.opened_at LIMIT 1
            ) AS oldest
            WHERE {counted} AND t.{key} = line AND t.kind = lines.kind
        ) AS oldest_at
        FROM lines ORDER BY count DESC, line, kind"""  # noqa: S608 - nothing but names of ours


def list_sql(query: ActionQuery) -> tuple[Statement, Statement]:
    """Return what counts all that match, and what fetches the page and one more. Raises InvalidError."""
    values: list[Any] = list(query.filters.values())
    conditions = [
        _OF_CUSTOMER.format(f"${number}") if column == "customer_id" else f"{column} = ${number}"
        for number, column in enumerate(query.filters, 1)
    ]
    matching = f"FROM actions.action WHERE {' AND '.join(conditions) or 'true'}"
    columns, descending = _BY[query.order]
    behind = ""
    page_values = [*values, query.page_size + 1]
    if query.page_token:
        place = read_token(query.page_token, _question(query), _PLACE)
        if len(place) != len(columns):
            raise InvalidError([Violation("page_token", "a next_page_token, as it was given")])
        numbers = ", ".join(f"${len(page_values) + number}" for number in range(1, len(place) + 1))
        page_values += place
        behind = f" AND ({', '.join(columns)}) {'<' if descending else '>'} ({numbers})"
    by = ", ".join(f"{column} DESC" if descending else column for column in columns)
    page = f"SELECT * {matching}{behind} ORDER BY {by} LIMIT ${len(values) + 1}"
    return _count(query, matching), (page, page_values)


class ActionQueries:
    """Answers questions about many actions."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def list(self, query: ActionQuery) -> ActionPage:
        """Return one page; the next one begins behind its last action, whatever is opened or changed meanwhile.

        Raises:
            InvalidError: the page token is not ours, or for other filters.
            UnavailableError: PostgreSQL does not answer.
        """
        (count, count_values), (page, page_values) = list_sql(query)
        with answerable():
            # One snapshot, so that the total fits the page.
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                total = await connection.fetchval(count, *count_values)
                rows = await connection.fetch(page, *page_values)
        shown = rows[: query.page_size]
        place = [shown[-1][column] for column in _BY[query.order][0]] if len(rows) > len(shown) else []
        token = write_token(_question(query), place) if place else ""
        actions = [Folded(action_of(row), row["revision"]) for row in shown]
        if _is_tallied(query):
            return ActionPage(actions, token, total, more=False)
        return ActionPage(actions, token, min(total, MAX_COUNTED), more=total > MAX_COUNTED)

    async def board(self, kind: ActionKind | None, now: datetime) -> Board:
        """Return how many actions there are, and how old they are at `now`. Raises UnavailableError."""
        lines: dict[str, Sequence[BoardLine]] = {}
        with answerable():
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                for dimension, column in DIMENSIONS.items():
                    rows = await connection.fetch(board_sql(dimension, column), str(kind or ""), BOARD_LINES)
                    lines[dimension] = [_line(row, now) for row in rows]
        return Board(lines, now)


def _line(row: Any, now: datetime) -> BoardLine:
    oldest_at = row["oldest_at"] or now
    return BoardLine(
        key=row["line"],
        kind=ActionKind(row["kind"]),
        count=int(row["count"]),
        overdue=int(row["overdue"]),
        mean_age_s=max(0.0, now.timestamp() - float(row["opened_s"] / int(row["count"]))),
        oldest_age_s=max(0.0, (now - oldest_at.astimezone(UTC)).total_seconds()),
    )


def _keys(query: ActionQuery) -> set[str]:
    return query.filters.keys() - {"kind", "state", "overdue"}


def _is_tallied(query: ActionQuery) -> bool:
    """Return whether what matches was counted when it changed, and need not be counted one by one."""
    keys = _keys(query)
    return len(keys) <= 1 and keys <= _COUNTED_BY.keys()


def _count(query: ActionQuery, matching: str) -> Statement:
    """Return the statement that counts all that match, or one more than MAX_COUNTED of them."""
    filters = query.filters
    if not _is_tallied(query):
        limited = f"SELECT {matching} LIMIT {MAX_COUNTED + 1}"
        return f"SELECT count(*) FROM ({limited}) AS counted", list(filters.values())  # noqa: S608 - names of ours
    by = next(iter(_keys(query)), "")
    counted = {None: "count", True: "overdue", False: "count - overdue"}[query.overdue]
    sql = f"""SELECT COALESCE(sum({counted}), 0)::bigint FROM actions.tally
              WHERE dimension = $1 AND key = $2 AND ($3 = '' OR kind = $3) AND ($4 = '' OR state = $4)"""  # noqa: S608 - names of ours
    return sql, [_COUNTED_BY.get(by, "state"), filters.get(by, ""), filters.get("kind", ""), filters.get("state", "")]
