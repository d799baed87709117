"""Which deadlines are over."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any


async def overdue(connection: Any, now: datetime, limit: int) -> Sequence[tuple[str, str]]:
    """Return action and deadline of at most `limit` deadlines that are over at `now`, the oldest first."""
    sql = """SELECT action_id, deadline_id FROM actions.deadline WHERE at <= $1
             ORDER BY at, action_id, deadline_id LIMIT $2"""
    rows = await connection.fetch(sql, now, limit)
    return [(row["action_id"], row["deadline_id"]) for row in rows]
