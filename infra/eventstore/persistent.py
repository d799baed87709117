"""The v1 PersistentSubscriptions service over the groups of consumers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from kurrentdbclient.protos.v1 import persistent_pb2 as pb
from kurrentdbclient.protos.v1 import persistent_pb2_grpc, shared_pb2

from infra.eventstore import errors, wire
from infra.eventstore.group_settings import (
    ALL,
    CreateOptions,
    first_checkpoint,
    group_key,
    settings_of,
    updated,
)
from infra.eventstore.groups import Consumer, Group, Message
from infra.eventstore.model import NO_STREAM
from infra.eventstore.store import Store

Context = grpc.aio.ServicerContext[Any, Any]
Key = tuple[str, str]


class PersistentSubscriptions(persistent_pb2_grpc.PersistentSubscriptionsServicer):
    """Groups live from the start of the node (`load`) to its end (`close`), with or without consumers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._groups: dict[Key, Group] = {}
        self._options: dict[Key, CreateOptions] = {}

    async def load(self) -> None:
        """Take up the groups that were created before."""
        query = "SELECT settings, checkpoint FROM subscriptions"
        for settings, checkpoint in await self._store.maintain(lambda db: db.execute(query).fetchall()):
            self._start(CreateOptions.FromString(settings), checkpoint)

    async def close(self) -> None:
        for group in self._groups.values():
            await group.close()

    @errors.answering
    async def Create(self, request: pb.CreateReq, context: Context) -> pb.CreateResp:  # noqa: N802
        del context
        options = request.options
        key = group_key(options)
        if key in self._groups:
            raise errors.group_exists(*key)
        settings_of(options)  # refuses what is wrong before anything is stored
        stream = None if key[0] == ALL else self._store.read.stream(key[0])
        last_revision = NO_STREAM if stream is None else stream.last_revision
        checkpoint = first_checkpoint(options, head=self._store.head, last_revision=last_revision)
        await self._save(options, checkpoint)
        if key not in self._groups:  # a second create may have overtaken this one
            self._start(options, checkpoint)
        return pb.CreateResp()

    @errors.answering
    async def Update(self, request: pb.UpdateReq, context: Context) -> pb.UpdateResp:  # noqa: N802
        """Change the settings; the group goes on from its checkpoint, and its consumers must connect again."""
        del context
        key = group_key(request.options)
        group = self._group(key)
        options = updated(self._options[key], request.options)
        settings_of(options)
        await self._save(options, group.checkpoint)  # first, so that the group lives on where this fails
        await group.close()
        self._start(options, group.checkpoint)
        return pb.UpdateResp()

    @errors.answering
    async def Delete(self, request: pb.DeleteReq, context: Context) -> pb.DeleteResp:  # noqa: N802
        del context
        key = group_key(request.options)
        group = self._group(key)
        query = "DELETE FROM subscriptions WHERE stream = ? AND group_name = ?"
        await self._store.maintain(lambda db: db.execute(query, key).rowcount)
        if self._groups.get(key) is group:  # a second delete may have overtaken this one
            del self._groups[key], self._options[key]
        await group.close()
        return pb.DeleteResp()

    async def Read(  # noqa: N802
        self, requests: AsyncIterator[pb.ReadReq], context: Context
    ) -> AsyncIterator[pb.ReadResp]:
        """Hand events to this consumer and take its answers, until it leaves or the group ends."""
        try:
            options = (await anext(requests)).options
            key = group_key(options)
            group = self._group(key)
            try:
                consumer = group.join(options.buffer_size, _connection_name(context))
            except OverflowError:
                raise errors.too_many_subscribers(*key) from None
            answers = asyncio.create_task(_take_answers(requests, group, consumer))
            try:
                confirmation = pb.ReadResp.SubscriptionConfirmation(subscription_id="::".join(key))
                yield pb.ReadResp(subscription_confirmation=confirmation)
                structured = wire.wants_structured_uuids(options)
                while (message := await consumer.outbox.get()) is not None:
                    yield _read_event(message, structured=structured)
                if answers.done():
                    answers.result()  # refuses what could not be read of them
            finally:
                answers.cancel()
                group.leave(consumer)
            if self._groups.get(key) is not group:
                raise errors.group_dropped(*key)
        except errors.FAILURES as error:
            await errors.abort(context, error)

    @errors.answering
    async def GetInfo(self, request: pb.GetInfoReq, context: Context) -> pb.GetInfoResp:  # noqa: N802
        del context
        return pb.GetInfoResp(subscription_info=_info(self._group(group_key(request.options)), self._store))

    @errors.answering
    async def List(self, request: pb.ListReq, context: Context) -> pb.ListResp:  # noqa: N802
        """All groups, or those of one stream; none at all is NOT_FOUND, as in KurrentDB."""
        del context
        groups = list(self._groups.values())
        if request.options.WhichOneof("list_option") == "list_for_stream":
            option = request.options.list_for_stream
            of_all = option.WhichOneof("stream_option") == "all"
            stream = ALL if of_all else option.stream.stream_name.decode()
            groups = [group for group in groups if group.settings.stream == stream]
            if not groups:
                raise errors.group_not_found(stream, "")
        return pb.ListResp(subscriptions=[_info(group, self._store) for group in groups])

    @errors.answering
    async def ReplayParked(  # noqa: N802
        self, request: pb.ReplayParkedReq, context: Context
    ) -> pb.ReplayParkedResp:
        del context
        limited = request.options.WhichOneof("stop_at_option") == "stop_at"
        group = self._group(group_key(request.options))
        await group.replay(request.options.stop_at if limited else None)
        return pb.ReplayParkedResp()

    async def RestartSubsystem(self, request: shared_pb2.Empty, context: Context) -> shared_pb2.Empty:  # noqa: N802
        """Nothing to restart: groups have no state beside the store's that could be stuck."""
        del request, context
        return shared_pb2.Empty()

    def _group(self, key: Key) -> Group:
        if key not in self._groups:
            raise errors.group_not_found(*key)
        return self._groups[key]

    def _start(self, options: CreateOptions, checkpoint: int) -> None:
        key = group_key(options)
        self._options[key] = options
        self._groups[key] = Group(self._store, settings_of(options), checkpoint)

    async def _save(self, options: CreateOptions, checkpoint: int) -> None:
        row = (*group_key(options), options.SerializeToString(), checkpoint)
        query = "REPLACE INTO subscriptions (stream, group_name, settings, checkpoint) VALUES (?, ?, ?, ?)"
        await self._store.maintain(lambda db: db.execute(query, row).rowcount)


async def _take_answers(requests: AsyncIterator[pb.ReadReq], group: Group, consumer: Consumer) -> None:
    """Raises Refusal where an answer names no event."""
    try:
        async for request in requests:
            if request.WhichOneof("content") == "ack":
                for event_id in request.ack.ids:
                    group.ack(consumer, wire.uuid_bytes(event_id))
            elif request.WhichOneof("content") == "nack":
                action = pb.ReadReq.Nack.Action.Name(request.nack.action)
                for event_id in request.nack.ids:
                    await group.nack(consumer, wire.uuid_bytes(event_id), action, request.nack.reason)
    finally:
        consumer.outbox.put_nowait(None)  # there is nothing more to come


def _read_event(message: Message, *, structured: bool) -> pb.ReadResp:
    event = pb.ReadResp.ReadEvent.RecordedEvent(**wire.recorded(message.event, structured=structured))
    return pb.ReadResp(
        event=pb.ReadResp.ReadEvent(event=event, commit_position=message.event.position, retry_count=message.retries)
    )


def _info(group: Group, store: Store) -> pb.SubscriptionInfo:
    settings = group.settings
    if settings.stream == ALL:
        checkpoint, last_known = (f"C:{place}/P:{place}" for place in (group.checkpoint, store.head))
    else:
        stream = store.read.stream(settings.stream)
        checkpoint, last_known = str(group.checkpoint), str(NO_STREAM if stream is None else stream.last_revision)
    connections = [
        pb.SubscriptionInfo.ConnectionInfo(
            connection_name=consumer.name,
            total_items=consumer.total,
            available_slots=consumer.slots - consumer.busy,
            in_flight_messages=consumer.busy,
        )
        for consumer in group.consumers
    ]
    return pb.SubscriptionInfo(
        event_source=settings.stream,
        group_name=settings.name,
        status="Live",
        connections=connections,
        total_items=group.total,
        last_checkpointed_event_position=checkpoint,
        last_known_event_position=last_known,
        resolve_link_tos=settings.resolve_links,
        start_from=settings.start,
        message_timeout_milliseconds=round(settings.message_timeout_s * 1000),
        extra_statistics=settings.extra_statistics,
        max_retry_count=settings.max_retry_count,
        live_buffer_size=settings.live_buffer_size,
        buffer_size=settings.history_buffer_size,
        read_batch_size=settings.read_batch_size,
        check_point_after_milliseconds=round(settings.checkpoint_after_s * 1000),
        min_check_point_count=settings.min_checkpoint_count,
        max_check_point_count=settings.max_checkpoint_count,
        read_buffer_count=group.waiting,
        retry_buffer_count=group.retrying,
        total_in_flight_messages=sum(consumer.busy for consumer in group.consumers),
        outstanding_messages_count=sum(consumer.busy for consumer in group.consumers),
        named_consumer_strategy=settings.strategy,
        max_subscriber_count=settings.max_subscriber_count,
        parked_message_count=group.parked,
    )


def _connection_name(context: Context) -> str:
    metadata = dict(context.invocation_metadata() or ())
    return str(metadata.get("connection-name", ""))
