"""The settings of a persistent subscription, kept as the protocol's own create options."""

from dataclasses import dataclass
from typing import Any, Final

from kurrentdbclient.protos.v1 import persistent_pb2

from infra.eventstore import errors, wire
from infra.eventstore.model import END_OF_STREAM
from infra.eventstore.reader import Filter

ALL: Final = "$all"

CreateOptions = persistent_pb2.CreateReq.Options

STRATEGIES: Final = ("DispatchToSingle", "RoundRobin", "Pinned", "PinnedByCorrelation")
TICKS_PER_SECOND: Final = 10_000_000


@dataclass(frozen=True)
class GroupSettings:
    """A group of consumers of `stream` ("$all" for all); `start` is where it was told to begin, as text.

    A timeout or count of 0 means: none, no limit.
    """

    stream: str
    name: str
    start: str
    strategy: str
    resolve_links: bool
    extra_statistics: bool
    max_retry_count: int
    min_checkpoint_count: int
    max_checkpoint_count: int
    max_subscriber_count: int
    live_buffer_size: int
    read_batch_size: int
    history_buffer_size: int
    message_timeout_s: float
    checkpoint_after_s: float
    filter: Filter | None


def group_key(options: Any) -> tuple[str, str]:
    """The stream and group name that a request is about.

    Raises:
        Refusal: a name is missing.
    """
    if not options.group_name:
        raise errors.invalid_argument("The group name is empty")
    if options.WhichOneof("stream_option") == "all":
        return ALL, options.group_name
    if options.stream_identifier.stream_name:
        return wire.stream_name(options), options.group_name
    return wire.stream_name(options.stream), options.group_name


def settings_of(options: CreateOptions) -> GroupSettings:
    """Read create options.

    Raises:
        Refusal: an unknown strategy, or a filter that is not one.
    """
    stream, name = group_key(options)
    settings = options.settings
    strategy = settings.consumer_strategy or STRATEGIES[settings.named_consumer_strategy]
    if strategy not in STRATEGIES:
        raise errors.invalid_argument(f"Consumer strategy {strategy} does not exist")
    return GroupSettings(
        stream=stream,
        name=name,
        start=_start(options),
        strategy=strategy,
        resolve_links=settings.resolve_links,
        extra_statistics=settings.extra_statistics,
        max_retry_count=settings.max_retry_count,
        min_checkpoint_count=settings.min_checkpoint_count,
        max_checkpoint_count=max(1, settings.max_checkpoint_count),
        max_subscriber_count=settings.max_subscriber_count,
        live_buffer_size=settings.live_buffer_size,
        read_batch_size=settings.read_batch_size,
        history_buffer_size=settings.history_buffer_size,
        message_timeout_s=_seconds(settings, "message_timeout"),
        checkpoint_after_s=_seconds(settings, "checkpoint_after"),
        filter=wire.event_filter(options.all) if stream == ALL else None,
    )


def first_checkpoint(options: CreateOptions, *, head: int, last_revision: int) -> int:
    """The place before the first event that a new group gets: revisions and positions given are included."""
    if options.WhichOneof("stream_option") == "all":
        which = options.all.WhichOneof("all_option")
        if which == "position":
            return min(options.all.position.commit_position, END_OF_STREAM) - 1
        return head if which == "end" else 0
    revision = options.stream.WhichOneof("revision_option")
    if revision == "revision":
        return min(options.stream.revision, END_OF_STREAM) - 1
    return last_revision if revision == "end" else -1


def updated(options: CreateOptions, change: persistent_pb2.UpdateReq.Options) -> CreateOptions:
    """The create options after an update, which never changes the filter."""
    new = CreateOptions()
    new.CopyFrom(options)
    new.settings.ParseFromString(change.settings.SerializeToString())  # the same fields under the same numbers
    if not change.settings.HasField("message_timeout"):
        new.settings.message_timeout_ms = options.settings.message_timeout_ms
    return new


def _start(options: CreateOptions) -> str:
    if options.WhichOneof("stream_option") == "all":
        which = options.all.WhichOneof("all_option")
        if which == "position":
            position = options.all.position
            return f"C:{position.commit_position}/P:{position.prepare_position}"
        return "C:-1/P:-1" if which == "end" else "C:0/P:0"
    revision = options.stream.WhichOneof("revision_option")
    if revision == "revision":
        return str(options.stream.revision)
    return "-1" if revision == "end" else "0"


def _seconds(settings: Any, name: str) -> float:
    ticks = float(getattr(settings, f"{name}_ticks")) / TICKS_PER_SECOND
    return ticks or float(getattr(settings, f"{name}_ms")) / 1000
