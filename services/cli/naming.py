"""Names that a person gives and nobody knows: told with the nearest that there are, instead of answering with nothing.

The services take any name, as a touchpoint, a need or a source may be heard of tomorrow. Whoever types one in a
terminal means one that there is. A service that cannot be asked holds up nobody: a note says that names were not
checked.
"""

import contextlib
import difflib
import string
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

import grpc

from recorrido.actions.v1.actions_service_pb2 import ListActionsRequest
from recorrido.inference.v1.inference_service_pb2 import GetTaxonomyRequest, ListAnalysesRequest
from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError, info

_NEAREST = 3
_ALL_TOLD = 12
#: How alike the nearest are at least; see `difflib.get_close_matches`.
_ALIKE = 0.6
_OFF_MAP = 1000
#: Among how many actions a short id is looked for.
_PAGE, _PAGES = 1000, 10


class UnknownNameError(CommandError):
    """A name was given that nobody knows; the text tells the nearest that there are."""


def unknown(kind: str, given: str, known: Iterable[str], where: str) -> UnknownNameError:
    """Return what to raise for a name that is not among the `known`; `where` is the command that lists them."""
    names = sorted(set(known))
    folded = {each.casefold(): each for each in names}
    near = difflib.get_close_matches(given.casefold(), folded, n=_NEAREST, cutoff=_ALIKE)
    meant = f"; did you mean {' or '.join(folded[each] for each in near)}?" if near else "."
    told = f"There are {', '.join(names)}" if 0 < len(names) <= _ALL_TOLD else f"'{where}' lists them"
    return UnknownNameError(f"no {kind} {given!r} is known{meant} {told}")


async def check_selection(addresses: Addresses, selection: pb.Selection, map_id: str) -> None:
    """Where nothing was found: make sure that this is not for want of such a need or source.

    Raises:
        UnknownNameError: it is.
    """
    with _unless_away():
        if selection.need_path:
            await _check_need(addresses, selection.need_path, map_id)
        if selection.source:
            known, all_of_them = await _groups(addresses, pb.GROUPING_SOURCE, map_id)
            if selection.source not in known and all_of_them:
                raise unknown("source", selection.source, known, "recorrido scores --by source")


async def check(addresses: Addresses, touchpoints: Sequence[str], need: str, map_id: str = "") -> None:
    """Make sure that each is a touchpoint of a map, or one that a source tells of; and that there are need and map.

    An empty name is none.

    Raises:
        UnknownNameError: one is not.
    """
    with _unless_away():
        if given := [each for each in touchpoints if each]:
            await _check_touchpoints(addresses, given)
        if need:
            await _check_need(addresses, need)
        if map_id:
            await _check_map(addresses, map_id)


@contextlib.contextmanager
def _unless_away() -> Iterator[None]:
    try:
        yield
    except UnknownNameError:
        raise
    except CommandError as error:
        show.console(stderr=True).print(f"note: whether such names are known was not checked: {error}", soft_wrap=True)


async def _check_touchpoints(addresses: Addresses, given: Sequence[str]) -> None:
    async with clients.journey(addresses) as journey:
        maps = await journey.ListJourneyMaps(pb.ListJourneyMapsRequest(), timeout=DEADLINE_S)
        asked = [pb.GetCoverageRequest(map_id=each.map.map_id, limit=_OFF_MAP) for each in maps.maps]
        # Without a map, what is heard is off it.
        covered = [
            await journey.GetCoverage(each, timeout=DEADLINE_S)
            for each in asked or [pb.GetCoverageRequest(limit=_OFF_MAP)]
        ]
    on_map = [each for found in covered for each in found.touchpoints]
    known = {each.touchpoint for found in covered for each in found.off_map}
    known |= {each.touchpoint_id for each in on_map} | {raw for each in on_map for raw in each.heard_as}
    # Where there are more than are told here, it may be one of them.
    wrong = [] if any(found.left_out for found in covered) else [name for name in given if name not in known]
    for name in wrong:
        raise unknown("touchpoint", name, known, "recorrido coverage")


async def _check_map(addresses: Addresses, map_id: str) -> None:
    async with clients.journey(addresses) as journey:
        maps = (await journey.ListJourneyMaps(pb.ListJourneyMapsRequest(), timeout=DEADLINE_S)).maps
    known = [each.map.map_id for each in maps]
    if map_id not in known:
        raise unknown("journey map", map_id, known, "recorrido map list")


async def check_customer(addresses: Addresses, customer_id: str, otherwise: str = "") -> None:
    """Make sure that anything was ever recorded of a customer: work for a slip of the pen is work for nobody.

    `otherwise` is what to do where it is none.

    Raises:
        UnknownNameError: nothing was.
    """
    with _unless_away():
        near = await _near_customers(addresses, customer_id)
        if near is not None:
            meant = f"did you mean {near}? " if near else ""
            more = otherwise or ("" if near else "customers are called as their sources call them")
            told = f"nothing was ever recorded of customer {customer_id!r}; {meant}{more}"
            raise UnknownNameError(told.rstrip())


@contextlib.asynccontextmanager
async def or_alike(addresses: Addresses, customer_id: str) -> AsyncIterator[None]:
    """Where what is asked of a customer is not known: tell of ids that are nearly the same, if there are any.

    Raises:
        UnknownNameError: there are.
        CommandError: the question failed otherwise.
    """
    try:
        yield
    except CommandError as error:
        if error.reason not in {"CUSTOMER_UNKNOWN", "INTERACTION_UNKNOWN"}:
            raise
        near = None
        with contextlib.suppress(CommandError):
            near = await _near_customers(addresses, customer_id)
        if near is None and error.reason == "INTERACTION_UNKNOWN":
            raise UnknownNameError(f"{error}; 'recorrido analyses CUSTOMER' tells the events of one") from error
        if not near:
            raise
        raise UnknownNameError(f"nothing is known of customer {customer_id!r}; did you mean {near}?") from error


async def _near_customers(addresses: Addresses, customer_id: str) -> str | None:
    """Return the ids most like one of which journey knows nothing, in words; None where it knows of it."""
    request = pb.GetCustomerJourneyRequest(customer_id=customer_id, page_size=1)
    async with clients.journey(addresses) as journey:
        try:
            await journey.GetCustomerJourney(request, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return str(info(error).metadata.get("near", ""))
    return None


def is_short(given: str) -> bool:
    """Whether it is an id as tables tell it where there is little room: the first block of a UUID."""
    return len(given) == show.SHORT_ID and set(given) <= set(string.hexdigits)


def whole_id(kind: str, given: str, known: Iterable[str]) -> str:
    """Return the one of the `known` ids that begins so; what is given where none does.

    Raises:
        UnknownNameError: several do.
    """
    found = sorted({each for each in known if each.startswith(given.lower())})
    if len(found) > 1:
        raise UnknownNameError(f"{len(found)} {kind}s begin with {given}: {', '.join(found)}")
    return found[0] if found else given


async def action_id(addresses: Addresses, given: str) -> str:
    """Return an action's whole id for one as tables tell it, among the newest actions."""
    if not is_short(given):
        return given
    known, request = set[str](), ListActionsRequest(page_size=_PAGE)
    async with clients.actions(addresses) as actions:
        for _ in range(_PAGES):
            page = await actions.ListActions(request, timeout=DEADLINE_S)
            known |= {each.action_id for each in page.actions}
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
    return whole_id("action", given, known)


async def event_id(addresses: Addresses, customer_id: str, given: str) -> str:
    """Return the whole id of an interaction's event for one as `analyses` tells it."""
    if not is_short(given):
        return given
    async with or_alike(addresses, customer_id), clients.inference(addresses) as inference:
        found = await inference.ListAnalyses(ListAnalysesRequest(customer_id=customer_id), timeout=DEADLINE_S)
    return whole_id("event", given, (each.interaction_event_id for each in found.analyses))


async def check_taxonomy(addresses: Addresses, need: str) -> None:
    """Make sure that it is a need of the taxonomy in force.

    Raises:
        UnknownNameError: it is not.
        CommandError: inference does not tell.
    """
    known = await _taxonomy(addresses)
    if need not in known:
        raise unknown("need", need, known, "recorrido taxonomy")


async def _taxonomy(addresses: Addresses) -> set[str]:
    async with clients.inference(addresses) as inference:
        taxonomy = await inference.GetTaxonomy(GetTaxonomyRequest(), timeout=DEADLINE_S)
    return {each.path for each in taxonomy.needs}


async def _check_need(addresses: Addresses, need: str, map_id: str = "") -> None:
    known = await _taxonomy(addresses)
    if need in known:
        return
    # Under another taxonomy it may have been told of.
    heard, all_of_them = await _groups(addresses, pb.GROUPING_NEED, map_id)
    if all_of_them and not any(each == need or each.startswith(f"{need}/") for each in heard):
        raise unknown("need", need, known | heard, "recorrido taxonomy")


async def _groups(addresses: Addresses, by: "pb.Grouping.ValueType", map_id: str) -> tuple[set[str], bool]:
    """Return the names that were heard, and whether these are all of them."""
    async with clients.journey(addresses) as journey:
        found = await journey.GetScores(pb.GetScoresRequest(map_id=map_id, group_by=[by]), timeout=DEADLINE_S)
    return {each.keys[0] for each in found.groups} - {""}, not found.left_out
