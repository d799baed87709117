"""Names as numbers: customers, touchpoints, needs and the like, of which many rows speak.

A name's key is a hash of it, so whoever meets it first gives it the same key; two names of one hash (one chance in ten
billion among 50,000) are told apart, the later one takes the next free key.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import Any, TypeAlias

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


#: What is named, and how.
Name: TypeAlias = tuple[Kind, str]


def first_key(kind: Kind, text: str) -> int:
    """Return the key of a name, but for one chance in billions: 1 to 2^62."""
    digest = blake2b(text.encode(), digest_size=8, person=str(int(kind)).encode()).digest()
    return int.from_bytes(digest, "big") % 2**62 + 1


class Names:
    """Gives names their keys, and writes those that are new."""

    def __init__(self) -> None:
        self._known: OrderedDict[Name, int] = OrderedDict()

    def forget(self) -> None:
        """Drop what is remembered: what was written may have been rolled back, or erased."""
        self._known.clear()

    async def keys(self, connection: Any, names: Iterable[Name]) -> Mapping[Name, int]:
        """Return the key of each name."""
        known, found, missing = self._known, {}, []
        for name in dict.fromkeys(names):
            key = known.get(name)
            if key is None:
                missing.append(name)
            else:
                found[name] = key
                known.move_to_end(name)
        if missing:
            new = await self._write(connection, missing)
            found |= new
            known |= new
            while len(known) > _REMEMBERED:
                known.popitem(last=False)
        return found

    async def _write(self, connection: Any, names: Sequence[Name]) -> dict[Name, int]:
        candidates = {name: first_key(*name) for name in names}
        done: dict[Name, int] = {}
        while candidates:
            # In one order, so that no two writers wait for each other.
            ordered = sorted((kind, key, text) for (kind, text), key in candidates.items())
            kinds, keys, texts = zip(*ordered, strict=True)
            await connection.execute(
                """INSERT INTO name SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::text[])
                   ON CONFLICT DO NOTHING""",
                kinds,
                keys,
                texts,
            )
            rows = await connection.fetch(
                """SELECT kind, key, text FROM name
                   JOIN unnest($1::smallint[], $2::bigint[]) AS wanted (kind, key) USING (kind, key)""",
                kinds,
                keys,
            )
            there = {(row["kind"], row["key"]): row["text"] for row in rows}
            taken = {name for name, key in candidates.items() if there[name[0], key] != name[1]}
            done |= {name: key for name, key in candidates.items() if name not in taken}
            candidates = {name: candidates[name] + 1 for name in taken}
        return done


async def texts_of(connection: Any, kind: Kind, keys: Iterable[int]) -> Mapping[int, str]:
    """Return the names that have these keys."""
    rows = await connection.fetch(
        "SELECT key, text FROM name WHERE kind = $1 AND key = ANY($2::bigint[])", int(kind), list(keys)
    )
    return {row["key"]: row["text"] for row in rows}


async def among(connection: Any, kind: Kind, candidates: Iterable[str]) -> Mapping[str, int]:
    """Return the keys of those candidates that are names; one that shares its hash with another name may be missing."""
    keys = {first_key(kind, each): each for each in candidates}
    there = await texts_of(connection, kind, keys)
    return {keys[key]: key for key, text in there.items() if text == keys[key]}


async def key_of(connection: Any, kind: Kind, text: str) -> int | None:
    """Return the key of a name, None where nobody has met it."""
    key = first_key(kind, text)
    while True:
        there = (await texts_of(connection, kind, [key])).get(key)
        if there is None or there == text:
            return None if there is None else key
        key += 1
