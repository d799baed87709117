"""Lists of actions and the board, from the read model."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from recorrido.actions.v1.events import ActionKind, ActionState, Priority
from services.actions.domain.action import CLOSED, Action
from services.actions.domain.rules import MAX_CUSTOMER_ID, MAX_ID, Rules
from services.actions.views.projection import DIMENSIONS, TALLIED, action_of
from services.foundation.errors import UnavailableError
from services.foundation.execute import Folded
from services.foundation.paging import POSITION, read_token, write_token
from services.foundation.projection import POSTGRES_DOWN

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
#: Lines of the board for each of owner, touchpoint and need.
BOARD_LINES = 100


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
    """One page, newest first. `total` counts all that match; `next_page_token` is empty on the last page."""

    actions: Sequence[Folded[Action]]
    next_page_token: str
    total: int


def _question(query: ActionQuery) -> list[str]:
    return [repr(each) for each in sorted(query.filters.items())]


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
    behind = ""
    page_values = [*values, query.page_size + 1]
    if query.page_token:
        page_values.append(read_token(query.page_token, _question(query), POSITION))
        behind = f" AND opened_position < ${len(page_values)}"
    page = f"SELECT * {matching}{behind} ORDER BY opened_position DESC LIMIT ${len(values) + 1}"
    return _count(query, matching), (page, page_values)


class ActionQueries:
    """Answers questions about many actions."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def list(self, query: ActionQuery) -> ActionPage:
        """Return one page. Actions opened while somebody pages come before the first page, never in between.

        Raises:
            InvalidError: the page token is not ours, or for other filters.
            UnavailableError: PostgreSQL does not answer.
        """
        (count, count_values), (page, page_values) = list_sql(query)
        try:
            # One snapshot, so that the total fits the page.
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                total = await connection.fetchval(count, *count_values)
                rows = await connection.fetch(page, *page_values)
        except POSTGRES_DOWN as error:
            raise UnavailableError("PostgreSQL", type(error).__name__) from error
        shown = rows[: query.page_size]
        token = write_token(_question(query), shown[-1]["opened_position"]) if len(rows) > len(shown) else ""
        return ActionPage([Folded(action_of(row), row["revision"]) for row in shown], token, total)

    async def board(self, kind: ActionKind | None, now: datetime) -> Board:
        """Return how many actions there are, and how old they are at `now`. Raises UnavailableError."""
        lines: dict[str, Sequence[BoardLine]] = {}
        try:
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                for dimension, column in DIMENSIONS.items():
                    rows = await connection.fetch(board_sql(dimension, column), str(kind or ""), BOARD_LINES)
                    lines[dimension] = [_line(row, now) for row in rows]
        except POSTGRES_DOWN as error:
            raise UnavailableError("PostgreSQL", type(error).__name__) from error
        return Board(lines, now)


def _line(row: Any, now: datetime) -> BoardLine:
    oldest_at = row["oldest_at"] or now
    return BoardLine(
        key=row["line"],
        kind=ActionKind(row["kind"]),
        count=int(row["count"]),
        overdue=int(row["overdue"]),
        mean_age_s=max(0.0, now.timestamp() - row["opened_s"] / int(row["count"])),
        oldest_age_s=max(0.0, (now - oldest_at.astimezone(UTC)).total_seconds()),
    )


def _count(query: ActionQuery, matching: str) -> Statement:
    """Return the statement that counts all that match. What is tallied need not be counted one by one."""
    filters = query.filters
    keys = filters.keys() - {"kind", "state", "overdue"}
    if len(keys) > 1 or not keys <= _COUNTED_BY.keys():
        return f"SELECT count(*) {matching}", list(filters.values())
    by = next(iter(keys), "")
    counted = {None: "count", True: "overdue", False: "count - overdue"}[query.overdue]
    sql = f"""SELECT COALESCE(sum({counted}), 0)::bigint FROM actions.tally
              WHERE dimension = $1 AND key = $2 AND ($3 = '' OR kind = $3) AND ($4 = '' OR state = $4)"""  # noqa: S608 - names of ours
    return sql, [_COUNTED_BY.get(by, "state"), filters.get(by, ""), filters.get("kind", ""), filters.get("state", "")]
