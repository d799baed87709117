"""Projections: read models that are folds over the history.

A runner follows the store from the projection's checkpoint and writes rows and checkpoint in one transaction, so a
read model is always exactly the fold of the history up to its checkpoint, whatever dies when.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import msgspec
import structlog
from opentelemetry.trace import SpanKind

from services.foundation import telemetry
from services.foundation.backoff import Backoff
from services.foundation.errors import (
    NotErasedError,
    OtherHistoryError,
    OtherTablesError,
    UnavailableError,
    kind_of,
)
from services.foundation.events import Event, Place, Recorded, Registry
from services.foundation.eventstore import CaughtUp, Checkpoint, EventStore
from services.foundation.lease import SILENT_S

LOG = structlog.get_logger()

#: What a lost or restarting PostgreSQL raises.
POSTGRES_DOWN = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    # Who was frozen hears of it when it goes on.
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.IdleSessionTimeoutError,
    # What asyncpg says of a connection that broke while it was being used: "another operation is in progress".
    asyncpg.InternalClientError,
    TimeoutError,
)
#: What a query of a read model raises that its projection has not built yet, or is building anew.
_NOT_BUILT = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)


@contextlib.contextmanager
def answerable() -> Iterator[None]:
    """Make of a lost PostgreSQL, and of a read model that is not built yet, what callers wait for: UnavailableError."""
    try:
        yield
    except _NOT_BUILT as error:
        raise UnavailableError("PostgreSQL", "the read model is not built yet") from error
    except POSTGRES_DOWN as error:
        raise UnavailableError("PostgreSQL", type(error).__name__) from error


class UnfitError(Exception):
    """An event holds what no projection of it can take."""


#: What is wrong with an event itself, or with how we apply it, and will be whenever it is applied.
UNFIT = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    UnfitError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)


#: What the tables of a schema were made for.
MADE_FOR = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1"
#: How far the history was read, and the last event in the rows. Its stream is bytes: PostgreSQL's text holds no NUL.
_CHECKPOINT = """CREATE TABLE checkpoint (
    position bigint NOT NULL, event_position bigint, event_id uuid, stream bytea, revision bigint
)"""
#: Digits of the largest position that PostgreSQL's bigint holds, less one.
_POSITION_DIGITS = 18
#: How long a batch may take to be written. Under kill -9 of PostgreSQL asyncpg was seen to wait for ever, whatever its
#: own timeouts, for a connection that was gone.
WRITE_WITHIN_S = 60.0
#: How often to look whether the right store is back.
RECHECK_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Fact:
    """One event to project: its struct and its envelope."""

    event: Any
    recorded: Recorded


def storable(value: str) -> str:
    """Return a text as PostgreSQL can hold it: without NUL, which a history may have of other writers."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def uuid_of(value: str) -> UUID | None:
    """Return the UUID that a text holds; None where it holds none."""
    try:
        return UUID(value)
    except ValueError:
        return None


def position_of(text: str) -> int:
    """Return the position in the store that a text holds. Raises UnfitError."""
    if not (text.isascii() and text.isdigit() and len(text) <= _POSITION_DIGITS):
        raise UnfitError(f"{text!r} is no position")
    return int(text)


def positions_of(texts: Iterable[str]) -> list[int]:
    """Return the positions in the store that texts hold; at what is none nothing stands, in no table either."""
    found = []
    for text in texts:
        with contextlib.suppress(UnfitError):
            found.append(position_of(text))
    return found


async def in_order(
    connection: Any,
    facts: Sequence[Fact],
    erasure: type[Event],
    apply: Callable[[Any, Sequence[Fact]], Awaitable[None]],
    *,
    forget: Callable[[Any, Fact], Awaitable[None]],
    leave: Callable[[Any, Fact], Awaitable[None]] | None = None,
) -> None:
    """Apply the facts in their order: erasures one by one, those between them together.

    An erased event may come again, with the id it had: what is before its erasure must not be mixed with what is after.
    An erasure is two steps, `forget` what is to be gone and `leave` what stands in its place. Where the second fails,
    whatever is wrong with it, the first is done all the same.

    Raises:
        NotErasedError: what is to be gone could not be deleted.
    """
    for is_erasure, some in groupby(facts, key=lambda fact: isinstance(fact.event, erasure)):
        if not is_erasure:
            await apply(connection, list(some))
            continue
        for fact in some:
            event_id = str(fact.recorded.event_id)
            try:
                async with connection.transaction():
                    await forget(connection, fact)
            except UNFIT as error:
                # What the error quotes may be what is to be gone.
                raise NotErasedError(event_id, error) from None
            if leave is None:
                continue
            try:
                async with connection.transaction():
                    await leave(connection, fact)
            except UNFIT as error:
                LOG.error("what an erasure leaves is passed over", event_id=event_id, error=kind_of(error))  # noqa: TRY400 - as above


class Projection(Protocol):
    """A read model in a PostgreSQL schema of its own."""

    #: Name of the schema and of the checkpoint.
    name: str
    types: Sequence[type[Event]]
    #: DDL, run once when the schema is created. Another DDL, or other types, mean to build it anew.
    ddl: str

    async def apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        """Fold `facts`, in order, into the rows. Runs inside the transaction that moves the checkpoint."""


async def connect(dsn: str) -> Any:
    """Return a connection pool, waiting until PostgreSQL answers."""
    backoff = Backoff()
    while True:
        try:
            return await asyncpg.create_pool(dsn, min_size=1, max_size=8, command_timeout=30.0, timeout=5.0)
        except POSTGRES_DOWN as error:
            LOG.warning("waiting for PostgreSQL", error=repr(error)[:200])
            await backoff.wait()


async def lazy_pool(dsn: str) -> Any:
    """Return a pool that connects when it is first used: for a service that can do without PostgreSQL for a while."""
    return await asyncpg.create_pool(dsn, min_size=0, max_size=4, command_timeout=30.0, timeout=5.0)


async def ping(pool: Any) -> bool:
    """Return whether PostgreSQL answers within two seconds."""
    try:
        async with asyncio.timeout(2):
            await pool.fetchval("SELECT 1")
    except (*POSTGRES_DOWN, asyncpg.PostgresError):
        return False
    return True


class ProjectionRunner:
    """Keeps one projection up to date."""

    #: The table of how far the history was read, and its first content.
    checkpoint_ddl = _CHECKPOINT
    checkpoint_rows = "INSERT INTO checkpoint VALUES (-1)"

    def __init__(
        self,
        store: EventStore,
        pool: Any,
        projection: Projection,
        *,
        batch_size: int = 1000,
        write_within_s: float = WRITE_WITHIN_S,
    ) -> None:
        self._write_within_s = write_within_s
        self._store = store
        self._pool = pool
        self._projection = projection
        self._registry = Registry(projection.types)
        self._batch_size = batch_size
        self._schema = projection.name
        # A projection that learnt to read more of the history has to read it from the beginning.
        described = "\n".join([self.checkpoint_ddl, projection.ddl, *sorted(self._registry.type_names)])
        self._fingerprint = hashlib.sha256(described.encode()).hexdigest()
        #: How far the history was read, and what of that is known to the database.
        self.position = 0
        self._stored = -1
        self._last: Place | None = None
        #: All events that the rows claim to be the last, each of which has to be in the history.
        self._places: Sequence[Place | None] = ()
        #: Set once everything recorded before the start was projected.
        self.caught_up = asyncio.Event()
        self._prepared = False
        self._moved = asyncio.Condition()
        self._passed_over = telemetry.METER.create_counter("recorrido.projection.undecodable")
        self._applied = telemetry.METER.create_counter("recorrido.projection.events")

    async def prepare(self) -> None:
        """Create the schema where it is missing, or was made for other tables or events.

        Raises:
            OtherTablesError: it was made anew for others since: by an instance of another version, which goes on.
            UnavailableError: PostgreSQL does not answer.
        """
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                # Two instances may start together; the lock lets one create and the other find.
                await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", self._schema)
                # What is left of a rebuild that was killed holds what may be erased later.
                if await connection.fetchval("SELECT pg_try_advisory_xact_lock(hashtext($1))", lock_of(self._schema)):
                    await connection.execute(f"DROP SCHEMA IF EXISTS {beside_of(self._schema)} CASCADE")
                made_for = await connection.fetchval(MADE_FOR, self._schema)
                if self._prepared:
                    self._check_tables(made_for)
                if made_for != self._fingerprint:
                    await connection.execute(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE")
                    await connection.execute(f"CREATE SCHEMA {self._schema}")
                    await connection.execute(f"COMMENT ON SCHEMA {self._schema} IS '{self._fingerprint}'")
                    await connection.execute(f"SET LOCAL search_path TO {self._schema}")
                    await connection.execute(self.checkpoint_ddl)
                    await connection.execute(self.checkpoint_rows)
                    await connection.execute(self._projection.ddl)
        except POSTGRES_DOWN as error:
            raise UnavailableError("PostgreSQL", repr(error)) from error
        self._prepared = True

    def _check_tables(self, made_for: str | None) -> None:
        if made_for not in {None, self._fingerprint}:
            raise OtherTablesError(self._schema)

    async def run(self, *, available: Callable[[bool], None] = lambda _: None) -> None:
        """Project for ever; while a part that it needs is down it waits, and `available(False)` is called.

        So it does when the store was replaced, and when another version made the tables anew: what is in the rows then
        stays, until the schema is dropped. And when it cannot apply an erasure.
        """
        told = ""
        task = asyncio.current_task()
        while True:
            try:
                async with asyncio.timeout(self._write_within_s):
                    await self.prepare()
                await self._project(available)
            except (OtherHistoryError, OtherTablesError, NotErasedError) as error:
                available(False)
                if error.message != told:
                    # But for what could not be deleted the text says it all.
                    where = {"where": error.where} if isinstance(error, NotErasedError) else {}
                    LOG.error("projection stopped", projection=self._schema, error=error.message, **where)  # noqa: TRY400
                told = error.message
                await asyncio.sleep(RECHECK_EVERY_S)
            except (UnavailableError, *POSTGRES_DOWN) as error:
                LOG.warning("projection waits", projection=self._schema, error=(str(error) or repr(error))[:200])
                available(False)
            except asyncpg.TransactionRollbackError as error:
                # Another instance moved the checkpoint, or two waited for each other's rows.
                LOG.warning("projection starts over", projection=self._schema, error=str(error))
            if task is not None and task.cancelling():
                # To give back a connection that is gone raised another error in its place.
                raise asyncio.CancelledError
            await asyncio.sleep(0.25)

    async def _project(self, available: Callable[[bool], None]) -> None:
        """Follow the store for ever, from where the rows stand."""
        await self._begin(available)
        await self._follow()

    async def _begin(self, available: Callable[[bool], None]) -> None:
        async with asyncio.timeout(self._write_within_s):
            await self._load()
        for place in self._places:
            await self._store.check(place)
        available(True)

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        """Return whether the read model reached `position` within `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.position >= position)
        return self.position >= position

    async def last(self) -> Place | None:
        """Return the last event in the rows; None where there is none. Raises UnavailableError."""
        try:
            await self._load()
        except POSTGRES_DOWN as error:
            raise UnavailableError("PostgreSQL", repr(error)) from error
        return self._last

    async def _load(self) -> None:
        """Read where the rows stand. Going on is from their last event, whose history can be checked."""
        async with self._pool.acquire() as connection:
            row = await connection.fetchrow(f"SELECT * FROM {self._schema}.checkpoint")  # noqa: S608 - a constant of ours
        self._stored, self._last = row["position"], place_of(row)
        self._places = [self._last]
        self.position = self._last.position if self._last else 0

    async def _follow(self) -> None:
        types = self._registry.type_names
        events = self._store.follow_in_batches(self._last, types, size=self._batch_size)
        async with contextlib.aclosing(events):
            async for batch in events:
                await self.write(batch)

    def _facts(self, recorded: Sequence[Recorded]) -> Iterator[Fact]:
        for item in recorded:
            try:
                event = self._registry.decode(item)
            except msgspec.MsgspecError as error:
                self._pass_over(item, error)
            else:
                yield Fact(event, item)

    def _pass_over(self, recorded: Recorded, error: Exception) -> None:
        """Somebody wrote what is no event of ours under its name. It stays in the history, and means nothing."""
        event_id = str(recorded.event_id)
        LOG.error("poison event passed over", projection=self._schema, event_id=event_id, error=kind_of(error))
        self._passed_over.add(1, {"projection": self._schema})

    async def write(self, batch: Sequence[Recorded | CaughtUp | Checkpoint]) -> None:
        """Fold what follows the rows into them."""
        recorded = [item for item in batch if isinstance(item, Recorded)]
        checkpoints = [item.position for item in batch if isinstance(item, Checkpoint)]
        position = max([self.position, *checkpoints, *(item.position for item in recorded)])
        if recorded or position > self.position:
            await self._fold(recorded, position)
        if any(isinstance(item, CaughtUp) for item in batch):
            self.caught_up.set()

    async def _fold(self, recorded: Sequence[Recorded], position: int) -> None:
        """Fold events into the rows, and move the checkpoint to `position`, behind them."""
        facts = list(self._facts(recorded))
        last = recorded[-1].place if recorded else self._last
        async with self._transaction() as connection:
            moved = await connection.execute(
                "UPDATE checkpoint SET position = $1, event_position = $2, event_id = $3, stream = $4,"
                " revision = $5 WHERE position = $6",
                position,
                *columns_of(last),
                self._stored,
            )
            if moved != "UPDATE 1":
                raise asyncpg.SerializationError(f"checkpoint of {self._schema} is not at {self._stored}")
            await self._apply(connection, facts)
        self._stored = position
        await self._reached(position, last, len(recorded))

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        async with asyncio.timeout(self._write_within_s), self._pool.acquire() as connection, connection.transaction():
            # Who is frozen in the middle of a write must not keep the others from writing for ever.
            silent_ms = int(1000 * min(SILENT_S, self._write_within_s))
            await connection.execute(
                f"SET LOCAL search_path TO {self._schema}; SET LOCAL idle_in_transaction_session_timeout = {silent_ms}"
            )
            yield connection

    async def _apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        with contextlib.ExitStack() as spans:
            for fact in facts if telemetry.exported() else ():
                span = telemetry.start_span(
                    f"project {self._schema}",
                    SpanKind.CONSUMER,
                    parent=telemetry.extract(fact.recorded.metadata),
                    attributes={"recorrido.event_id": str(fact.recorded.event_id)},
                )
                spans.callback(span.end)
            await self._apply_fit(connection, facts)

    async def _apply_fit(self, connection: Any, facts: Sequence[Fact]) -> None:
        """Apply the facts; one that the projection cannot take, whatever is wrong with it, is passed over alone."""
        try:
            async with connection.transaction():
                await self._projection.apply(connection, facts)
        except UNFIT as error:
            if len(facts) <= 1:
                for fact in facts:
                    self._pass_over(fact.recorded, error)
                return
            half = len(facts) // 2
            await self._apply_fit(connection, facts[:half])
            await self._apply_fit(connection, facts[half:])

    async def _reached(self, position: int, last: Place | None, events: int) -> None:
        self._last = last
        async with self._moved:
            self.position = position
            self._moved.notify_all()
        self._applied.add(events, {"projection": self._schema})


def beside_of(schema: str) -> str:
    """Return the schema that a read model is built anew in."""
    return f"{schema}_beside"


def lock_of(schema: str) -> str:
    """Return the lock of who builds a read model anew."""
    return f"rebuild {schema}"


def columns_of(last: Place | None) -> Sequence[Any]:
    """Return what a checkpoint holds of the last event."""
    return (last.position, last.event_id, last.stream.encode(), last.revision) if last else (None,) * 4


def place_of(row: Any) -> Place | None:
    """Return the last event that a checkpoint names, None where there was none."""
    if row["event_id"] is None:
        return None
    return Place(row["event_position"], row["event_id"], row["stream"].decode(), row["revision"])
