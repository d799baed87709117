"""Every read model that the services have, and whether it equals the fold of its streams."""

import asyncio
import importlib
import pkgutil
from typing import Any

import asyncpg
from kurrentdbclient import AsyncKurrentDBClient

import services
from infra.local.cluster import Cluster
from tests.faults.chaos.proof import Report
from tests.support.tables import dump
from tests.support.wait import until


def projections() -> dict[str, frozenset[str]]:
    """Return the read models that there are, by schema, with the types of the events that they fold."""
    found = {}
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if ".cli" in module.name or module.name.endswith("__main__"):
            continue
        for each in vars(importlib.import_module(module.name)).values():
            if isinstance(each, type) and all(name in vars(each) for name in ("name", "types", "ddl", "apply")):
                model: Any = each
                found[model.name] = frozenset(event.type_name for event in model.types)
    return found


async def _last_positions(uri: str) -> dict[str, int]:
    """Return the position of the last event that each read model folds."""
    client = AsyncKurrentDBClient(uri=uri)
    await client.connect()
    try:
        found = {}
        for schema, types in projections().items():
            include = [f"^{name.replace('.', '[.]')}$" for name in types]
            last = await client.read_all(filter_include=include, backwards=True, limit=1)
            found[schema] = max([event.commit_position async for event in last], default=-1)
        return found
    finally:
        await client.close()


async def unfolded(cluster: Cluster, pool: Any) -> list[str]:
    """Return the read models that have not seen the last event that concerns them."""
    lasts = await _last_positions(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    return [
        schema
        for schema, last in lasts.items()
        if last >= 0 and await pool.fetchval(f"SELECT min(event_position) FROM {schema}.checkpoint") != last
    ]


async def _is_folded(cluster: Cluster, pool: Any) -> bool:
    return not await unfolded(cluster, pool)


async def _rows(pool: Any) -> dict[str, dict[str, list[tuple[Any, ...]]]]:
    rows = {schema: await dump(pool, schema) for schema in projections()}
    for tables in rows.values():
        # How far it was read behind the last event of its own depends on when it was asked.
        del tables["checkpoint"]
    return {
        schema: {table: sorted(map(_rounded, each), key=repr) for table, each in tables.items()}
        for schema, tables in rows.items()
    }


def _rounded(row: tuple[Any, ...]) -> tuple[Any, ...]:
    # The last digits of a floating-point sum depend on how the history was cut into batches.
    return tuple(float(f"{value:.9g}") if isinstance(value, float) else value for value in row)


async def compare_read_models(cluster: Cluster, report: Report) -> None:
    """Drop every read model, let the services fold the history anew, undisturbed, and compare the rows."""
    pool = await asyncpg.create_pool(cluster.environment["RECORRIDO_POSTGRES_DSN"])
    before = await _rows(pool)
    owners = [name for name in ("ingest", "inference", "journey", "actions") if name in cluster.parts]
    await asyncio.gather(*map(cluster.stop, owners))
    for schema in before:
        await pool.execute(f"DROP SCHEMA {schema} CASCADE")
    await asyncio.gather(*map(cluster.start, owners))
    await until(lambda: _is_folded(cluster, pool), 600, what="the new fold", ignoring=(asyncpg.PostgresError,))
    after = await _rows(pool)
    await pool.close()
    differing = [f"{s}.{t}" for s, tables in before.items() for t, rows in tables.items() if after[s].get(t) != rows]
    names = ", ".join(f"{schema} ({sum(map(len, tables.values())):,} rows)" for schema, tables in before.items())
    report.check(f"every read model equals the fold of its streams: {names}", differing)
