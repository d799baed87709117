"""Appends, reads, deletes and metadata, driven by the official Python client.

The same tests run against a real server when RECORRIDO_TEST_KURRENTDB names one: stream names are fresh in every test.
"""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from kurrentdbclient import AsyncKurrentDBClient, KurrentDBClient, NewEvent, StreamState
from kurrentdbclient import exceptions as refusals
from kurrentdbclient.events import NewEvents, NewRecord, RecordedEvent, StreamStateCheck

from tests.support import eventstore

NO_STREAM, ANY, EXISTS = StreamState.NO_STREAM, StreamState.ANY, StreamState.EXISTS


@pytest.fixture
def client(uri: str) -> Iterator[KurrentDBClient]:
    client = KurrentDBClient(uri)
    yield client
    client.close()


@pytest.fixture
def stream() -> str:
    return f"customer-{uuid4()}"


def new(count: int, **fields: Any) -> list[NewEvent]:
    return [NewEvent(type="Recorded", data=b'{"n":%d}' % n, **fields) for n in range(count)]


def record(stream: str, **fields: Any) -> NewRecord:
    return NewRecord(stream_name=stream, type="Recorded", data=b"{}", **fields)


def revisions(events: tuple[RecordedEvent, ...]) -> list[int]:
    return [event.stream_position for event in events]


def test_an_event_comes_back_as_it_went_in(client: KurrentDBClient, stream: str) -> None:
    event = NewEvent(
        type="Blob", data=bytes(range(256)), metadata=b'{"a":"\xc3\xa9"}', content_type="application/octet-stream"
    )
    position = client.append_to_stream(stream, current_version=NO_STREAM, events=event)

    (read,) = client.get_stream(stream)

    assert (read.id, read.type, read.data, read.metadata) == (event.id, event.type, event.data, event.metadata)
    assert (read.content_type, read.stream_name) == (event.content_type, stream)
    assert (read.stream_position, read.commit_position) == (0, position)
    assert read.recorded_at is not None


@pytest.mark.parametrize("name", ["ñandú-č-客户", "a b/c'd\"e", "x" * 1000])
def test_a_stream_name_may_be_anything(client: KurrentDBClient, name: str) -> None:
    name = f"{name}-{uuid4()}"
    client.append_to_stream(name, current_version=NO_STREAM, events=new(1))
    assert [event.stream_name for event in client.get_stream(name)] == [name]


def test_positions_grow_over_all_streams(client: KurrentDBClient) -> None:
    positions = [client.append_to_stream(f"p-{uuid4()}", current_version=NO_STREAM, events=new(2)) for _ in range(3)]
    assert positions == sorted(set(positions))


class TestExpectedRevision:
    def test_no_stream_refuses_a_second_start(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(3))
        with pytest.raises(refusals.WrongCurrentVersionError) as refusal:
            client.append_to_stream(stream, current_version=NO_STREAM, events=new(1))
        assert refusal.value.actual_version == 2

    def test_the_stated_revision_must_be_the_last(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(3))
        for wrong in (0, 1, 3, 2**40):
            with pytest.raises(refusals.WrongCurrentVersionError) as refusal:
                client.append_to_stream(stream, current_version=wrong, events=new(1))
            assert refusal.value.actual_version == 2
        client.append_to_stream(stream, current_version=2, events=new(1))
        assert revisions(client.get_stream(stream)) == [0, 1, 2, 3]

    def test_a_revision_of_a_stream_that_does_not_exist(self, client: KurrentDBClient, stream: str) -> None:
        with pytest.raises(refusals.WrongCurrentVersionError) as refusal:
            client.append_to_stream(stream, current_version=0, events=new(1))
        assert refusal.value.actual_version == NO_STREAM

    def test_exists(self, client: KurrentDBClient, stream: str) -> None:
        with pytest.raises(refusals.WrongCurrentVersionError):
            client.append_to_stream(stream, current_version=EXISTS, events=new(1))
        client.append_to_stream(stream, current_version=ANY, events=new(1))
        client.append_to_stream(stream, current_version=EXISTS, events=new(1))
        assert client.get_current_version(stream) == 1

    async def test_batch_append_refuses_alike(self, uri: str, stream: str) -> None:
        """The asynchronous client appends with BatchAppend."""
        client = AsyncKurrentDBClient(uri)
        await client.append_to_stream(stream, current_version=NO_STREAM, events=new(2))
        with pytest.raises(refusals.WrongCurrentVersionError) as refusal:
            await client.append_to_stream(stream, current_version=NO_STREAM, events=new(1))
        assert refusal.value.actual_version == 1
        with pytest.raises(refusals.WrongCurrentVersionError) as refusal:
            await client.append_to_stream(f"{stream}-absent", current_version=4, events=new(1))
        assert refusal.value.actual_version == NO_STREAM
        assert len(await client.get_stream(stream)) == 2
        await client.close()


class TestIdempotency:
    def test_with_any_a_repeat_is_acknowledged_with_its_first_position(
        self, client: KurrentDBClient, stream: str
    ) -> None:
        events = new(3)
        first = client.append_to_stream(stream, current_version=ANY, events=events)
        client.append_to_stream(stream, current_version=ANY, events=new(2))

        assert client.append_to_stream(stream, current_version=ANY, events=events) == first
        assert len(client.get_stream(stream)) == 5

    def test_with_a_stated_revision_the_same_ids_must_follow_it(self, client: KurrentDBClient, stream: str) -> None:
        first, second = new(2), new(2)
        client.append_to_stream(stream, current_version=NO_STREAM, events=first)
        position = client.append_to_stream(stream, current_version=1, events=second)

        assert client.append_to_stream(stream, current_version=1, events=second) == position
        client.append_to_stream(stream, current_version=NO_STREAM, events=first)
        with pytest.raises(refusals.WrongCurrentVersionError):
            client.append_to_stream(stream, current_version=NO_STREAM, events=second)
        with pytest.raises(refusals.WrongCurrentVersionError):
            client.append_to_stream(stream, current_version=1, events=[second[0], *new(1)])
        assert len(client.get_stream(stream)) == 4

    def test_at_the_last_revision_an_old_id_is_written_again(self, client: KurrentDBClient, stream: str) -> None:
        events = new(1)
        client.append_to_stream(stream, current_version=NO_STREAM, events=events)
        client.append_to_stream(stream, current_version=0, events=events)
        assert len(client.get_stream(stream)) == 2

    def test_ids_belong_to_their_stream(self, client: KurrentDBClient, stream: str) -> None:
        events = new(1)
        client.append_to_stream(stream, current_version=ANY, events=events)
        client.append_to_stream(f"{stream}-other", current_version=ANY, events=events)
        assert len(client.get_stream(f"{stream}-other")) == 1

    @pytest.mark.skipif(eventstore.is_real_server(), reason="KurrentDB refuses or repeats a partly known append")
    def test_with_any_only_the_unknown_events_are_written(self, client: KurrentDBClient, stream: str) -> None:
        known, unknown = new(2), new(2)
        client.append_to_stream(stream, current_version=ANY, events=known)
        client.append_to_stream(stream, current_version=ANY, events=[known[0], unknown[0], known[1], unknown[1]])
        assert [event.id for event in client.get_stream(stream)] == [event.id for event in known + unknown]

    async def test_concurrent_repeats_are_written_once(self, uri: str, stream: str) -> None:
        import asyncio

        client = AsyncKurrentDBClient(uri)
        events = new(5)
        await asyncio.gather(*(client.append_to_stream(stream, current_version=ANY, events=events) for _ in range(20)))
        assert [event.id for event in await client.get_stream(stream)] == [event.id for event in events]
        await client.close()


class TestAppendRecords:
    def test_many_streams_at_once(self, client: KurrentDBClient, stream: str) -> None:
        result = client.append_records(
            [record(f"{stream}-a"), record(f"{stream}-b"), record(f"{stream}-a")],
            checks=[StreamStateCheck(f"{stream}-a", NO_STREAM), StreamStateCheck(f"{stream}-c", NO_STREAM)],
        )
        assert {s.stream_name: s.stream_position for s in result.stream_positions} == {
            f"{stream}-a": 1,
            f"{stream}-b": 0,
        }
        assert max(event.commit_position for event in client.get_stream(f"{stream}-a")) == result.commit_position

    def test_all_or_nothing_and_every_culprit_is_named(self, client: KurrentDBClient, stream: str) -> None:
        a, b, c, d = (f"{stream}-{letter}" for letter in "abcd")
        client.append_records([record(a), record(a), record(b)])

        with pytest.raises(refusals.ConsistencyChecksFailedError) as refusal:
            client.append_records(
                [record(a), record(b), record(c)],
                checks=[
                    StreamStateCheck(b, 0),
                    StreamStateCheck(a, 0),
                    StreamStateCheck(c, NO_STREAM),
                    StreamStateCheck(d, EXISTS),
                ],
            )

        failures = [(f.check_index, f.stream_state_failure) for f in refusal.value.failures]
        assert [(i, f.stream_name, f.expected_state, f.actual_state) for i, f in failures if f] == [
            (1, a, 0, 1),
            (3, d, -4, -1),
        ]
        assert revisions(client.get_stream(b)) == [0]
        with pytest.raises(refusals.NotFoundError):
            client.get_stream(c)

    def test_a_repeat_is_acknowledged(self, client: KurrentDBClient, stream: str) -> None:
        records = [record(f"{stream}-a"), record(f"{stream}-b")]
        checks = [StreamStateCheck(f"{stream}-a", NO_STREAM)]
        first = client.append_records(records, checks=checks)
        assert client.append_records(records, checks=checks) == first
        assert len(client.get_stream(f"{stream}-b")) == 1

    def test_a_repeat_beside_something_new_is_a_conflict(self, client: KurrentDBClient, stream: str) -> None:
        a, b = f"{stream}-a", f"{stream}-b"
        repeated = record(a)
        client.append_records([repeated], checks=[StreamStateCheck(a, NO_STREAM)])
        with pytest.raises(refusals.ConsistencyChecksFailedError) as refusal:
            client.append_records(
                [repeated, record(b)], checks=[StreamStateCheck(a, NO_STREAM), StreamStateCheck(b, NO_STREAM)]
            )
        (failure,) = refusal.value.failures
        assert failure.stream_state_failure
        assert (failure.stream_state_failure.stream_name, failure.stream_state_failure.actual_state) == (a, 0)
        with pytest.raises(refusals.NotFoundError):
            client.get_stream(b)

    def test_properties_become_metadata(self, client: KurrentDBClient, stream: str) -> None:
        client.append_records(record(stream, metadata=b'{"traceparent": "00-ab"}'))
        (read,) = client.get_stream(stream)
        assert b'"traceparent"' in read.metadata
        assert b"00-ab" in read.metadata
        assert read.content_type == "application/json"

    def test_a_tombstoned_stream_is_refused(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=ANY, events=new(1))
        client.tombstone_stream(stream, current_version=ANY)
        with pytest.raises(refusals.ConsistencyChecksFailedError) as refusal:
            client.append_records([record(stream), record(f"{stream}-b")])
        (failure,) = refusal.value.failures
        assert failure.stream_state_failure
        assert (failure.stream_state_failure.stream_name, failure.stream_state_failure.actual_state) == (stream, -6)

    async def test_with_the_asynchronous_client(self, uri: str, stream: str) -> None:
        client = AsyncKurrentDBClient(uri)
        await client.append_records([record(stream)], checks=[StreamStateCheck(stream, NO_STREAM)])
        with pytest.raises(refusals.ConsistencyChecksFailedError):
            await client.append_records([record(stream)], checks=[StreamStateCheck(stream, NO_STREAM)])
        await client.close()


class TestAppendSession:
    def test_many_streams_at_once(self, client: KurrentDBClient, stream: str) -> None:
        a, b = f"{stream}-a", f"{stream}-b"
        position = client.multi_append_to_stream([NewEvents(a, new(2), NO_STREAM), NewEvents(b, new(1), ANY)])
        assert client.get_stream(b)[-1].commit_position == position

        with pytest.raises(refusals.WrongCurrentVersionError) as refusal:
            client.multi_append_to_stream([NewEvents(b, new(1), 0), NewEvents(a, new(1), 0)])
        assert (refusal.value.stream_name, refusal.value.actual_version) == (a, 1)
        assert len(client.get_stream(b)) == 1

    def test_a_stream_may_come_once(self, client: KurrentDBClient, stream: str) -> None:
        with pytest.raises(refusals.MultiAppendToSameStreamError):
            client.multi_append_to_stream([NewEvents(stream, new(1), ANY), NewEvents(stream, new(1), ANY)])

    def test_a_tombstoned_stream_is_refused(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=ANY, events=new(1))
        client.tombstone_stream(stream, current_version=ANY)
        with pytest.raises(refusals.StreamTombstonedError):
            client.multi_append_to_stream([NewEvents(stream, new(1), ANY)])


class TestLimits:
    pytestmark = pytest.mark.skipif(eventstore.is_real_server(), reason="the limits are a server's own settings")

    def test_a_record(self, client: KurrentDBClient, stream: str) -> None:
        with pytest.raises(refusals.RecordMaxSizeExceededError) as refusal:
            client.append_records(NewRecord(stream_name=stream, type="T", data=b"x" * 1024 * 1024))
        assert (refusal.value.stream_name, refusal.value.size) == (stream, 1024 * 1024 + 1)

    def test_a_transaction(self, client: KurrentDBClient, stream: str) -> None:
        big = [NewRecord(stream_name=stream, type="T", data=b"x" * 1000 * 1000) for _ in range(17)]
        with pytest.raises(refusals.TransactionMaxSizeExceededError):
            client.append_records(big)
        with pytest.raises(refusals.NotFoundError):
            client.get_stream(stream)

    async def test_a_batch(self, uri: str, stream: str) -> None:
        client = AsyncKurrentDBClient(uri)
        with pytest.raises(refusals.MaximumAppendSizeExceededError):
            await client.append_to_stream(
                stream, current_version=ANY, events=NewEvent(type="T", data=b"x" * 1024 * 1024)
            )
        await client.close()


class TestRead:
    def test_a_stream_in_both_directions(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(300))
        assert revisions(client.get_stream(stream)) == list(range(300))
        assert revisions(client.get_stream(stream, backwards=True)) == list(range(299, -1, -1))
        assert revisions(client.get_stream(stream, stream_position=290, limit=5)) == [290, 291, 292, 293, 294]
        assert revisions(client.get_stream(stream, stream_position=2, backwards=True)) == [2, 1, 0]
        assert revisions(client.get_stream(stream, stream_position=299)) == [299]
        assert revisions(client.get_stream(stream, limit=200)) == list(range(200))
        assert client.get_stream(stream, stream_position=300) == ()

    def test_a_stream_that_does_not_exist(self, client: KurrentDBClient, stream: str) -> None:
        with pytest.raises(refusals.NotFoundError):
            client.get_stream(stream)
        assert client.get_current_version(stream) == NO_STREAM

    def test_all_in_both_directions(self, client: KurrentDBClient, stream: str) -> None:
        start = client.append_to_stream(stream, current_version=ANY, events=new(1))
        client.append_to_stream(stream, current_version=ANY, events=new(9))
        mine = client.get_stream(stream)

        forwards = list(client.read_all(commit_position=start, limit=10))
        assert [event.id for event in forwards] == [event.id for event in mine], "the position itself is included"
        backwards = list(client.read_all(commit_position=mine[-1].commit_position, backwards=True, limit=9))
        assert [event.id for event in backwards] == [event.id for event in mine[-2::-1]], "here it is not"
        (last,) = client.read_all(backwards=True, limit=1)
        assert last.id == mine[-1].id
        assert client.get_commit_position() == mine[-1].commit_position

    def test_a_position_that_was_never_given_out(self, client: KurrentDBClient) -> None:
        with pytest.raises(refusals.InvalidCommitPositionError):
            list(client.read_all(commit_position=client.get_commit_position() + 1_000_000_000))

    @pytest.mark.parametrize("backwards", [False, True])
    def test_all_through_filters(self, client: KurrentDBClient, stream: str, *, backwards: bool) -> None:
        for n in range(40):
            kind = f"Kind{n % 4}{stream[-8:]}"
            client.append_to_stream(
                f"{'odd' if n % 2 else 'even'}{stream}", current_version=ANY, events=NewEvent(type=kind, data=b"{}")
            )
        wanted = f"Kind1{stream[-8:]}"

        def count(**filters: Any) -> int:
            return len(list(client.read_all(backwards=backwards, **filters)))

        assert count(filter_include=[wanted]) == 10
        assert count(filter_include=[f"Kind.{stream[-8:]}"]) == 40
        assert count(filter_include=[f"Kind1{stream[-8:]}", "Kind2.*" + stream[-8:]]) == 20
        assert count(filter_include=[f"odd{stream[:-3]}"], filter_by_stream_name=True, filter_by_prefix=True) == 20
        assert count(filter_include=[f"even{stream}"], filter_by_stream_name=True) == 20
        assert count(filter_include=["Kind1", "Kind3"], filter_by_prefix=True, limit=15) == 15
        assert count(filter_exclude=[f"Kind[^1]{stream[-8:]}"]) >= 10


class TestDelete:
    def test_a_deleted_stream_is_not_found_and_can_start_again(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(3))
        client.delete_stream(stream, current_version=2)
        with pytest.raises(refusals.NotFoundError):
            client.get_stream(stream)

        client.append_to_stream(stream, current_version=NO_STREAM, events=new(2))
        assert revisions(client.get_stream(stream)) == [3, 4], "the numbering goes on"

    def test_what_was_deleted_can_be_recorded_again(self, client: KurrentDBClient, stream: str) -> None:
        if eventstore.is_real_server():
            pytest.skip("KurrentDB may still remember the ids of deleted events")
        events = new(2)
        client.append_to_stream(stream, current_version=ANY, events=events)
        client.delete_stream(stream, current_version=ANY)
        client.append_to_stream(stream, current_version=ANY, events=events)
        assert revisions(client.get_stream(stream)) == [2, 3]

    def test_refusals(self, client: KurrentDBClient, stream: str) -> None:
        with pytest.raises(refusals.NotFoundError):
            client.delete_stream(stream, current_version=0)
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(3))
        with pytest.raises(refusals.WrongCurrentVersionError):
            client.delete_stream(stream, current_version=1)
        client.delete_stream(stream, current_version=2)
        with pytest.raises(refusals.StreamIsDeletedError):
            client.delete_stream(stream, current_version=EXISTS)

    def test_a_tombstone_is_for_ever(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(3))
        client.tombstone_stream(stream, current_version=2)
        with pytest.raises(refusals.StreamIsDeletedError):
            client.get_stream(stream)
        with pytest.raises(refusals.StreamIsDeletedError):
            client.append_to_stream(stream, current_version=ANY, events=new(1))
        with pytest.raises(refusals.StreamIsDeletedError):
            client.delete_stream(stream, current_version=ANY)
        with pytest.raises(refusals.StreamIsDeletedError):
            client.tombstone_stream(stream, current_version=ANY)
        with pytest.raises(refusals.StreamIsDeletedError):
            client.get_stream_metadata(stream)
        # The client sends this with Append, whose refusal it maps less finely.
        with pytest.raises((refusals.StreamIsDeletedError, refusals.FailedPreconditionError), match="is deleted"):
            client.set_stream_metadata(stream, metadata={})


class TestMetadata:
    def test_it_is_kept_and_versioned(self, client: KurrentDBClient, stream: str) -> None:
        assert client.get_stream_metadata(stream) == ({}, NO_STREAM)
        client.set_stream_metadata(stream, metadata={"owner": "cx"})
        client.set_stream_metadata(stream, metadata={"owner": "ops"}, current_version=0)
        assert client.get_stream_metadata(stream) == ({"owner": "ops"}, 1)
        with pytest.raises(refusals.WrongCurrentVersionError):
            client.set_stream_metadata(stream, metadata={}, current_version=0)

    def test_max_count_and_truncate_before(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(5))
        client.set_stream_metadata(stream, metadata={"$maxCount": 2})
        assert revisions(client.get_stream(stream)) == [3, 4]
        assert revisions(client.get_stream(stream, backwards=True)) == [4, 3]
        client.set_stream_metadata(stream, metadata={"$tb": 4})
        assert revisions(client.get_stream(stream)) == [4]
        client.set_stream_metadata(stream, metadata={"$tb": 1, "$maxCount": 3})
        assert revisions(client.get_stream(stream)) == [2, 3, 4]
        client.set_stream_metadata(stream, metadata={})
        assert revisions(client.get_stream(stream)) == [0, 1, 2, 3, 4]

    def test_max_age(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(2))
        client.set_stream_metadata(stream, metadata={"$maxAge": 3600})
        assert revisions(client.get_stream(stream)) == [0, 1]

    def test_setting_it_on_a_deleted_stream_brings_the_stream_back_empty(
        self, client: KurrentDBClient, stream: str
    ) -> None:
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(2))
        client.delete_stream(stream, current_version=ANY)
        client.set_stream_metadata(stream, metadata={"owner": "cx"})
        metadata, _ = client.get_stream_metadata(stream)
        assert metadata == {"owner": "cx", "$tb": 2}
        client.append_to_stream(stream, current_version=1, events=new(1))
        assert revisions(client.get_stream(stream)) == [2]

    def test_senseless_metadata_limits_nothing(self, client: KurrentDBClient, stream: str) -> None:
        client.append_to_stream(stream, current_version=NO_STREAM, events=new(2))
        for senseless in (b"\xff{", b"[]", b'{"$maxCount": "2", "$maxAge": -1}', b'{"$maxCount": 1%s}' % (b"0" * 30)):
            event = NewEvent(type="$metadata", data=senseless)
            client.append_to_stream(f"$${stream}", current_version=ANY, events=event)
            assert revisions(client.get_stream(stream)) == [0, 1]
