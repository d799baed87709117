"""What a read model really holds."""

from typing import Any


async def dump(pool: Any, schema: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table of a schema, by table, in an order of their own."""
    tables = await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    return {
        name: sorted((tuple(row) for row in await pool.fetch(f"SELECT * FROM {schema}.{name}")), key=repr)
        for (name,) in tables
    }
