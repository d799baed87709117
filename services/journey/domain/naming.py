"""Ids that a question gives and the map does not have: what to tell, so that the asker finds the right one."""

import difflib
import string
from collections.abc import Iterable

from recorrido.journey.v1.events import JourneyMap

#: So many ids are told all; of more, the nearest.
ALL_TOLD, NEAREST = 12, 3
#: How alike the nearest are at least; see `difflib.get_close_matches`.
_ALIKE = 0.6
#: What ids are made of, and how long one is at most of which slips are looked for: there are some 140 for each letter.
_LETTERS = string.ascii_letters + string.digits + "-_.:@"
_MAX_SLIPPED = 64


def unknown(map_: JourneyMap, kind: str, given: str, labels: Iterable[tuple[str, str]]) -> str:
    """Return the rule that `given` breaks; `labels` are id and display name of each `kind` that `map_` has.

    A display name is told from an id, and leads to it.
    """
    if not map_.map_id:
        return f"no {kind} {given!r}, for no journey map is published"
    known = dict(labels)
    lacks = f"no {kind} {given!r} in the map {map_.map_id!r}"
    if not known:
        return f"{lacks}; it has no {kind}s"
    near = nearest(given, known.items())
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    if len(known) <= ALL_TOLD:
        return f"{lacks}{meant or ';'} its {kind}s are: {', '.join(known)}"
    return f"{lacks}{meant or ';'} it has {len(known)} {kind}s"


def nearest(given: str, labels: Iterable[tuple[str, str]]) -> list[str]:
    """Return the ids most like `given`, by id or display name, the nearest first."""
    ids: dict[str, str] = {}
    for id_, name in labels:
        ids.setdefault(id_.casefold(), id_)
        ids.setdefault(name.casefold(), id_)
    close = difflib.get_close_matches(given.casefold(), ids, n=2 * NEAREST, cutoff=_ALIKE)
    return list(dict.fromkeys(ids[each] for each in close))[:NEAREST]


def slips(given: str) -> set[str]:
    """Return all that `given` may have been meant for: what one slip, or another case, makes of it.

    A slip is a letter too many, too few or another, or two that changed places; four of five misspellings are one such
    (Damerau, "A technique for computer detection and correction of spelling errors", CACM 7(3), 1964).
    """
    if len(given) > _MAX_SLIPPED:
        return set()
    cuts = [(given[:n], given[n:]) for n in range(len(given) + 1)]
    found = {given.lower(), given.upper(), given.strip()}
    found |= {left + right[1:] for left, right in cuts if right}
    found |= {left + right[1] + right[0] + right[2:] for left, right in cuts if len(right) > 1}
    found |= {left + letter + right[1:] for left, right in cuts if right for letter in _LETTERS}
    found |= {left + letter + right for left, right in cuts for letter in _LETTERS}
    return found - {given, ""}
