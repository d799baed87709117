"""Of all that was said about a verbatim one thing counts: given any order, then a person's, then the last."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from recorrido.inference.v1.events import (
    Analysis,
    AnalysisCorrected,
    Aspect,
    Confidence,
    Emotion,
    FeedbackAnalysisFailed,
    FeedbackAnalyzed,
    PointKind,
    Sentiment,
)
from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from recorrido.ingest.v1.events import Verbatim as Words
from services.foundation.errors import DiffersError, InvalidError, NotFoundError
from services.foundation.events import Event, Recorded, encode
from services.foundation.intervals import wilson
from services.foundation.masking import Masker, Pii
from services.inference.comparison import Differences, label
from services.inference.main import TAXONOMY
from services.inference.opinions import CorrectAnalysis, Corrections, Judged, Verbatim, corrected, verbatims
from services.inference.taxonomy import load

ABOUT = str(UUID(int=0))
MODEL = Analysis(
    language="en",
    sentiment=Sentiment.NEGATIVE,
    sentiment_score=-0.4,
    point=PointKind.PAIN,
    confidence=Confidence(sentiment=0.6, point=0.7, need=0.3),
    model="feedback",
    model_version="1",
    taxonomy_version="1",
    unsure=(Aspect.NEED, Aspect.EMOTION),
)


def recorded(event: Event, revision: int) -> Recorded:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Recorded(event.type_name, encode(event), {}, UUID(int=revision), "customer-ana", revision, revision, at)


def heard(*events: Event) -> Verbatim:
    first = InteractionRecorded(interaction=Interaction(verbatim=Words(text="Late again, ana@example.com")))
    return verbatims(recorded(each, revision) for revision, each in enumerate((first, *events)))[ABOUT]


def analyzed(version: str) -> FeedbackAnalyzed:
    return FeedbackAnalyzed(interaction_event_id=ABOUT, analysis=structs.replace(MODEL, model_version=version))


def failed() -> FeedbackAnalysisFailed:
    return FeedbackAnalysisFailed(interaction_event_id=ABOUT, reason="MODEL_FAILED")


def judged(actor: str) -> AnalysisCorrected:
    return AnalysisCorrected(
        interaction_event_id=ABOUT, analysis=corrected(MODEL, {Aspect.POINT: PointKind.ITCH}), actor=actor
    )


def test_a_person_counts_before_a_model_and_a_model_before_a_failure() -> None:
    assert heard().counting is None
    for events, index in (
        ([failed()], 0),
        ([analyzed("1"), failed()], 0),
        ([analyzed("1"), analyzed("2")], 1),
        ([judged("mia"), analyzed("2"), failed()], 0),
        ([analyzed("1"), judged("mia"), analyzed("2"), judged("joe"), analyzed("3")], 3),
    ):
        counting = heard(*events).counting
        assert counting is not None
        assert counting.event == events[index]


@given(st.lists(st.sampled_from(["analyzed", "failed", "judged"]), min_size=1, max_size=8))
def test_whatever_comes_later_a_lighter_opinion_never_counts(kinds: list[str]) -> None:
    events = [
        {"analyzed": analyzed(str(n)), "failed": failed(), "judged": judged(str(n))}[kind]
        for n, kind in enumerate(kinds)
    ]
    counting = heard(*events).counting
    assert counting is not None
    heaviest = next(kind for kind in ("judged", "analyzed", "failed") if kind in kinds)
    assert counting.recorded.revision == 1 + max(n for n, kind in enumerate(kinds) if kind == heaviest)


def test_an_opinion_about_nothing_and_what_is_no_event_are_passed_over() -> None:
    broken = structs.replace(recorded(analyzed("1"), 1), data=b"{nonsense")
    stray = recorded(FeedbackAnalyzed(interaction_event_id="elsewhere"), 2)
    first = recorded(InteractionRecorded(), 0)
    assert [len(v.opinions) for v in verbatims([first, broken, stray]).values()] == [0]


# -- correcting ----------------------------------------------------------------------------------------------------


def correct(request_id: str = "r", **changes: object) -> CorrectAnalysis:
    decided = {Aspect[name.upper()]: value for name, value in changes.items()}
    return CorrectAnalysis(ABOUT, "ana", decided, "7", "mia", "", request_id)


def test_the_cause_of_a_correction_is_all_that_is_said() -> None:
    """The store takes two events of one id for the same: what differs must not come to one."""
    said = correct(sentiment=Sentiment.POSITIVE)
    others = [correct(sentiment=Sentiment.NEGATIVE), correct(), correct("r2", sentiment=Sentiment.POSITIVE)]
    others += [replace(said, **{name: "x"}) for name in ("actor", "comment", "interaction_event_id")]
    assert len({each.cause for each in (said, *others)}) == 7
    assert correct(sentiment=Sentiment.POSITIVE).cause == said.cause


def after(*events: FeedbackAnalyzed | AnalysisCorrected) -> Judged:
    state = Corrections().initial()
    for event in events:
        state = Corrections().evolve(state, event)
    return state


def test_a_correction_keeps_what_nobody_said_otherwise() -> None:
    (event,) = Corrections().decide(correct(sentiment=Sentiment.POSITIVE, emotion=Emotion.JOY), after(analyzed("1")))
    assert isinstance(event, AnalysisCorrected)
    assert event.analysis == structs.replace(
        MODEL,
        sentiment=Sentiment.POSITIVE,
        sentiment_score=1.0,
        emotion=Emotion.JOY,
        confidence=Confidence(sentiment=1.0, point=0.7, need=0.3, emotion=1.0),
        unsure=(Aspect.NEED,),
        corrected=(Aspect.SENTIMENT, Aspect.EMOTION),
    )


def test_corrections_add_up_over_what_the_last_model_said() -> None:
    first = after(analyzed("1"))
    (one,) = Corrections().decide(correct("1", point=PointKind.ITCH), first)
    (two,) = Corrections().decide(correct("2", need="delivery"), after(analyzed("1"), one, analyzed("2")))
    assert two.analysis.model_version == "2"
    assert (two.analysis.point, two.analysis.need_path) == (PointKind.ITCH, "delivery")
    assert two.analysis.corrected == (Aspect.POINT, Aspect.NEED)
    assert two.analysis.taxonomy_version == "7"
    (three,) = Corrections().decide(correct("3", point=PointKind.NONE), after(analyzed("1"), one, two))
    assert (three.analysis.point, three.analysis.need_path) == (PointKind.NONE, "delivery")


def test_what_no_model_understood_a_person_may() -> None:
    (event,) = Corrections().decide(correct(point=PointKind.PAIN), after())
    assert (event.analysis.point, event.analysis.corrected) == (PointKind.PAIN, (Aspect.POINT,))
    assert (event.analysis.model, event.analysis.taxonomy_version) == ("", "7")


def test_a_request_repeated_decides_nothing_and_one_used_again_is_refused() -> None:
    (event,) = Corrections().decide(correct(point=PointKind.ITCH), after(analyzed("1")))
    known = after(analyzed("1"), event, analyzed("2"))
    assert Corrections().decide(correct(point=PointKind.ITCH), known) == []
    for other in (correct(point=PointKind.PAIN), replace(correct(point=PointKind.ITCH), actor="joe")):
        with pytest.raises(DiffersError):
            Corrections().decide(other, known)


# -- comparing -----------------------------------------------------------------------------------------------------


def test_a_label_is_what_a_reader_would_count() -> None:
    assert label(MODEL, Aspect.SENTIMENT) == "negative"
    assert label(MODEL, Aspect.NEED) == "unsure"
    assert label(structs.replace(MODEL, unsure=()), Aspect.NEED) == "none"
    assert label(structs.replace(MODEL, unsure=(), need_path="delivery/speed"), Aspect.NEED) == "delivery"
    assert label(structs.replace(MODEL, unsure=()), Aspect.EMOTION) == ""
    assert label(Analysis(), Aspect.LANGUAGE) == "unsure"


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals_are_those_of_the_literature(successes: int, trials: int, low: float, high: float) -> None:
    # The last is an example of R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I.
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_differences_are_counted_masked_and_judged() -> None:
    found = Differences(1, Masker(tuple(Pii)))
    verbatim = heard(analyzed("1"), judged("mia"))
    other = structs.replace(MODEL, point=PointKind.ITCH, model_version="2")
    found.add(verbatim, MODEL, other)
    found.add(verbatim, MODEL, other)
    found.add(verbatim, MODEL, None)
    assert (found.compared, found.failed) == (2, 1)
    point = found.aspects[Aspect.POINT]
    assert (point.compared, point.changed, point.pairs["pain", "itch"]) == (2, 2, 2)
    assert (point.judged, point.base_right, point.other_right) == (2, 0, 2)
    assert [example.text for example in point.examples] == ["Late again, [email]"]
    # Neither answers this, so there is nothing to compare.
    assert Aspect.INTENT not in found.aspects


# -- the taxonomy --------------------------------------------------------------------------------------------------

NODE = "{id: %s, name: {en: A, sl: B}, definition: {en: A, sl: B}%s}"
DEEP = NODE % ("d", "")
for _id in "cba":
    DEEP = NODE % (_id, f", children: [{DEEP}]")


def test_the_taxonomy_of_this_repository_is_read() -> None:
    known = load(TAXONOMY)
    assert {need.level for need in known.needs.values()} == {1, 2, 3}
    assert known.language_of("") == known.languages[0]
    assert known.language_of("pt-BR") == known.language_of("PT") == "pt"
    with pytest.raises(InvalidError):
        known.language_of("tlh")
    with pytest.raises(NotFoundError):
        known.below("luck")


def test_a_retired_need_keeps_its_name_and_takes_nothing_new(tmp_path: Path) -> None:
    file = tmp_path / "taxonomy.yaml"
    nodes = [NODE % ("fax", ", retired: true"), NODE % ("web", "")]
    file.write_text(f"version: 3\nlanguages: [en, sl]\nneeds: [{', '.join(nodes)}]\n")
    known = load(file)
    assert (known.version, known.needs["fax"].name["sl"], known.needs["fax"].retired) == ("3", "B", True)
    assert "retired" in known.violation("fax")
    assert known.violation("web") == ""
    assert "version 3" in known.violation("luck")


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("[]", "at least one"),
        (f"[{NODE % ('a', '')}, {NODE % ('a', '')}]", "used twice"),
        (f"[{NODE % ('A', '')}]", "lower-case"),
        ("[{id: a, name: {en: A}, definition: {en: A, sl: B}}]", "no name in sl"),
        ("[{id: a, names: {}}]", "names"),
        ("{", "taxonomy.yaml"),
        (f"[{DEEP}]", "3 levels"),
    ],
)
def test_a_file_that_breaks_a_rule_is_told(tmp_path: Path, needs: str, message: str) -> None:
    file = tmp_path / "taxonomy.yaml"
    file.write_text(f"version: 1\nlanguages: [en, sl]\nneeds: {needs}\n")
    with pytest.raises(ValueError, match=message):
        load(file)
    with pytest.raises(ValueError, match="No such file"):
        load(tmp_path / "nothing.yaml")
