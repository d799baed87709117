"""What must be true afterwards, whatever happened before."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from infra.local.cluster import Cluster
from tests.faults.chaos.clients import Tally
from tests.faults.chaos.deaths import Deaths
from tests.faults.chaos.plan import Plan
from tests.support.truth import published, stored

INTERACTION, ANALYSED = "recorrido.ingest.v1.InteractionRecorded", "recorrido.inference.v1.FeedbackAnalyzed"
SIGNAL, OPENED = "recorrido.journey.v1.SignalRaised", "recorrido.actions.v1.ActionOpened"


@dataclass
class Report:
    """What was done and found; `broken` names every invariant that does not hold, with an example."""

    plan: Plan
    tally: Tally
    deaths: Deaths
    recording_s: float = 0.0
    settling_s: float = 0.0
    events: int = 0
    proven: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def check(self, claim: str, wrong: Sequence[Any] | set[Any]) -> None:
        examples = ", ".join(map(str, list(wrong)[:3]))
        if wrong:
            self.broken.append(f"{claim}: not so for {len(wrong)}, such as {examples}")
        else:
            self.proven.append(claim)

    @property
    def text(self) -> str:
        tally, deaths = self.tally, self.deaths
        rate = len(tally.acknowledged) / max(self.recording_s, 0.001)
        lines = [
            f"seed {self.plan.seed}, {self.plan.interactions:,} interactions by {self.plan.clients} clients",
            f"acknowledged    {len(tally.acknowledged):,} in {self.recording_s:.0f} s ({rate:,.0f}/s)",
            f"pauses          {tally.longest_pause_s:.1f} s at most; all settled {self.settling_s:.0f} s after the end",
            f"never repeated  {len(tally.unknown):,} without an answer",
            f"calls           {tally.calls:,}, repeated for {counts(tally.repeated)}; {tally.duplicates:,} duplicates",
            f"killed          {deaths.killed.total()}: {counts(deaths.killed)}",
            f"relay handover  {_spread(deaths.handovers_s)}",
            f"events          {self.events:,} in the store",
            *(f"  holds   {claim}" for claim in self.proven),
            *(f"  BROKEN  {claim}" for claim in self.broken),
        ]
        return "\n".join(lines)


def counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common()) or "nothing"


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none seen"
    ordered = sorted(seconds)
    return f"{len(ordered)}, median {ordered[len(ordered) // 2]:.1f} s, longest {ordered[-1]:.1f} s"


def _interaction_id(event: Any) -> int:
    return int(msgspec.json.decode(event.data)["interaction"]["interactionId"])


async def verify(cluster: Cluster, report: Report) -> None:
    plan, tally = report.plan, report.tally
    events = await stored(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    report.events = len(events)
    of_type: dict[str, list[Any]] = {}
    for event in events:
        of_type.setdefault(event.type, []).append(event)
    recorded: dict[int, list[str]] = {}
    for event in of_type.get(INTERACTION, []):
        recorded.setdefault(_interaction_id(event), []).append(str(event.id))

    acknowledged = tally.acknowledged
    report.check("clients are told nothing but what they may repeat, and the same id each time", tally.wrong)
    report.check(
        "every interaction that was to be repeated was acknowledged",
        set(range(plan.interactions)) - acknowledged.keys() - tally.unknown,
    )
    report.check(
        "every acknowledged interaction is in the store exactly once, under the id that was told",
        [n for n, event_id in acknowledged.items() if recorded.get(n) != [event_id]],
    )
    report.check("no other is there more than once", [n for n, ids in recorded.items() if len(ids) > 1])
    report.check("nothing is there that nobody sent", recorded.keys() - set(range(plan.interactions)))
    report.check("event ids are unique", [i for i, n in Counter(e.id for e in events).items() if n > 1])
    report.check("the revisions of every stream have no gap", list(_gaps(events)))
    times = [event.recorded_at for event in events]
    report.check("times of recording follow the order of recording", [b for a, b in itertools.pairwise(times) if b < a])

    messages = [m.event_id for m in await published(cluster.environment["RECORRIDO_NATS_URL"])]
    report.check("every event is on the bus", {str(e.id) for e in events} - set(messages))
    report.check("once", [i for i, n in Counter(messages).items() if n > 1])
    report.check(
        "in the store's order, and nothing else", [] if messages == [str(e.id) for e in events] else ["the order"]
    )

    said = {str(e.id) for e in of_type.get(INTERACTION, []) if "verbatim" in msgspec.json.decode(e.data)["interaction"]}
    analysed = Counter(msgspec.json.decode(e.data)["interactionEventId"] for e in of_type.get(ANALYSED, []))
    report.check(
        "every verbatim is analysed once", [i for i in said | analysed.keys() if analysed[i] != 1 or i not in said]
    )
    hurt = {n for n in recorded if any(r.value == 1 for r in plan.interaction(n).ratings)}
    signals, opened = of_type.get(SIGNAL, []), of_type.get(OPENED, [])
    evidence = {str(i) for e in signals for i in _ids(msgspec.json.decode(e.data))}
    report.check("every bad rating raised a signal", {recorded[n][0] for n in hurt} - evidence)
    report.check(
        "every signal is raised once", [s for s, n in Counter(e.stream_name for e in signals).items() if n > 1]
    )
    report.check(
        "every signal opened one recovery", [] if len(opened) == len(signals) else [f"{len(opened)} of {len(signals)}"]
    )


def _gaps(events: Sequence[Any]) -> Iterator[str]:
    following: Counter[str] = Counter()
    for event in events:
        if event.stream_position != following[event.stream_name]:
            yield f"{event.stream_position}@{event.stream_name}"
        following[event.stream_name] = event.stream_position + 1


def _ids(value: Any) -> Iterator[str]:
    """Every string in a document; event ids among them."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _ids(each)
    elif isinstance(value, list):
        for each in value:
            yield from _ids(each)
    elif isinstance(value, str):
        yield value
