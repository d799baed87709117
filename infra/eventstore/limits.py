"""How much one append may hold, in bytes of event type, metadata and data."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """The largest event and the largest append (all events of one transaction, over all streams)."""

    max_event_bytes: int = 1 * MIB
    max_append_bytes: int = 16 * MIB

    @property
    def max_message_bytes(self) -> int:
        """The largest gRPC message to accept: an append, and room for what wraps each event."""
        return 2 * self.max_append_bytes
