"""Outlines of streams: which keys they hold, in eight bytes each.

Whether a key is new can be told without the state that it would be in. Of each key a hash is kept: where it is not
among those of the stream, the key is not in the stream. Where it is, only the stream itself can tell, since two keys
may share a hash: as with a Bloom filter there are false positives and no false negatives
(https://en.wikipedia.org/wiki/Bloom_filter).
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from msgspec import Struct

StateT = TypeVar("StateT")
StateT_contra = TypeVar("StateT_contra", contravariant=True)

_HASH_BYTES = 8
_ID_BYTES = 16
#: What an outline takes beside its hashes: its objects, its stream's name, and its place among the others.
_OVERHEAD_BYTES = 272


class Keyed(Protocol[StateT_contra]):
    """Tells the keys of a decider whose commands are concerned by nothing but what a stream holds under their key."""

    def keys(self, state: StateT_contra) -> Iterable[str]: ...
    def key(self, command: Any) -> str: ...


class _Outline(Struct, frozen=True, gc=False):
    revision: int
    #: The id of the event at that revision, and the hashes.
    packed: bytes

    @property
    def size(self) -> int:
        return _OVERHEAD_BYTES + len(self.packed)


class Outlines(Generic[StateT]):
    """Outlines of as many streams as fit into `max_bytes`; those not used for longest are forgotten first."""

    def __init__(self, keyed: Keyed[StateT], max_bytes: int) -> None:
        self._keyed = keyed
        self._max_bytes = max_bytes
        self._bytes = 0
        self._outlines: OrderedDict[str, _Outline] = OrderedDict()

    def keep(self, stream: str, state: StateT, revision: int, last: UUID) -> None:
        """Remember what `stream` holds as of `revision`, where `last` is the event."""
        self._put(stream, _Outline(revision, last.bytes + self._hashes(state)))

    def extend(self, stream: str, since: int, state: StateT, revision: int, last: UUID) -> None:
        """Remember that behind revision `since` the stream holds `state`, if that is where its outline ends."""
        known = self._outlines.get(stream)
        if known is not None and known.revision == since:
            self._put(stream, _Outline(revision, last.bytes + known.packed[_ID_BYTES:] + self._hashes(state)))

    def end(self, stream: str) -> tuple[int, UUID] | None:
        """Return the revision where the outline of `stream` ends, and the event there; None: there is no outline."""
        known = self._outlines.get(stream)
        return None if known is None else (known.revision, UUID(bytes=known.packed[:_ID_BYTES]))

    def concern(self, stream: str, command: Any) -> bool:
        """Return whether what is in the outline of `stream` may concern `command`; false is for sure."""
        self._outlines.move_to_end(stream)
        # It may also be found where two hashes meet, which is as likely as that two keys share one.
        return self._outlines[stream].packed.find(_hash(self._keyed.key(command)), _ID_BYTES) >= 0

    def forget(self, stream: str) -> None:
        if (known := self._outlines.pop(stream, None)) is not None:
            self._bytes -= known.size

    def clear(self) -> None:
        self._outlines.clear()
        self._bytes = 0

    def _put(self, stream: str, outline: _Outline) -> None:
        self.forget(stream)
        self._outlines[stream] = outline
        self._bytes += outline.size
        while self._bytes > self._max_bytes:
            self.forget(next(iter(self._outlines)))

    def _hashes(self, state: StateT) -> bytes:
        return b"".join(map(_hash, self._keyed.keys(state)))


def _hash(key: str) -> bytes:
    # Python's own: SipHash under a secret of the process, so that nobody can look for keys that share one.
    return hash(key).to_bytes(_HASH_BYTES, "little", signed=True)
