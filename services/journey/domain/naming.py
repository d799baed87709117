"""Ids that a question gives and the map does not have: what to tell, so that the asker finds the right one."""

import difflib
from collections.abc import Iterable

from recorrido.journey.v1.events import JourneyMap

#: So many ids are told all; of more, the nearest.
ALL_TOLD, NEAREST = 12, 3
#: How alike the nearest are at least; see `difflib.get_close_matches`.
_ALIKE = 0.6


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
