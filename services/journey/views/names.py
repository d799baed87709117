"""Names as numbers: customers, touchpoints, needs and the like, of which many rows speak.

A name's key is a hash of it, so whoever meets it first gives it the same key; two names of one hash (one chance in ten
billion among 50,000) are told apart, the later one takes the next free key.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import Any

DDL = """
-- Names, each under its key. Looked up by key alone: it is the hash of the name.
CREATE TABLE name (
    kind smallint NOT NULL,
    key bigint NOT NULL,
    text text COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, key)
);
"""

#: Names kept at hand by who writes.
_REMEMBERED = 50_000


class Kind(IntEnum):
    """What is named.

    A touchpoint's name is the JSON of source, touchpoint and channel; a profile's of what is told of a customer; a
    scale's of name and bounds.
    """

    CUSTOMER = 1
    TOUCHPOINT = 2
    NEED = 3
    PROFILE = 4
    SCALE = 5


def first_key(kind: Kind, text: str) -> int:
    """Return the key of a name, but for one chance in billions: 1 to 2^62."""
    digest = blake2b(text.encode(), digest_size=8, person=str(int(kind)).encode()).digest()
    return int.from_bytes(digest, "big") % 2**62 + 1


class Names:
    """Gives names their keys, and writes those that are new."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Kind, str], int] = OrderedDict()

    def forget(self) -> None:
        """Drop what is remembered: what was written may have been rolled back, or erased."""
        self._known.clear()

    async def keys(self, connection: Any, kind: Kind, texts: Iterable[str]) -> Mapping[str, int]:
        """Return the key of each name."""
        wanted = dict.fromkeys(texts)
        found = {text: self._known[kind, text] for text in wanted if (kind, text) in self._known}
        missing = [text for text in wanted if text not in found]
        if missing:
            new = await self._write(connection, kind, missing)
            found |= new
            self._known |= {(kind, text): key for text, key in new.items()}
        for text in wanted:
            self._known.move_to_end((kind, text))
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    async def _write(self, connection: Any, kind: Kind, texts: Sequence[str]) -> dict[str, int]:
        candidates = {text: first_key(kind, text) for text in texts}
        done: dict[str, int] = {}
        while candidates:
            # In one order, so that no two writers wait for each other.
            ordered = sorted(candidates.items(), key=lambda item: item[1])
            await connection.execute(
                """INSERT INTO name SELECT $1, key, text FROM unnest($2::bigint[], $3::text[]) AS new (key, text)
                   ON CONFLICT DO NOTHING""",
                int(kind),
                [key for _, key in ordered],
                [text for text, _ in ordered],
            )
            there = await texts_of(connection, kind, candidates.values())
            done |= {text: key for text, key in candidates.items() if there[key] == text}
            candidates = {text: key + 1 for text, key in candidates.items() if there[key] != text}
        return done


async def texts_of(connection: Any, kind: Kind, keys: Iterable[int]) -> Mapping[int, str]:
    """Return the names that have these keys."""
    rows = await connection.fetch(
        "SELECT key, text FROM name WHERE kind = $1 AND key = ANY($2::bigint[])", int(kind), list(keys)
    )
    return {row["key"]: row["text"] for row in rows}


async def key_of(connection: Any, kind: Kind, text: str) -> int | None:
    """Return the key of a name, None where nobody has met it."""
    key = first_key(kind, text)
    while True:
        there = (await texts_of(connection, kind, [key])).get(key)
        if there is None or there == text:
            return None if there is None else key
        key += 1
