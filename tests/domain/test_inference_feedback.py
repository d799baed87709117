"""Analyses in a customer's stream: given what was recorded, when a result comes, then it counts once per version."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.inference.v1.events import (
    Analysis,
    FeedbackAnalysisFailed,
    FeedbackAnalyzed,
    PointKind,
    Sentiment,
)
from services.inference.domain import (
    MAX_TEXT_BYTES,
    Analysed,
    Feedback,
    Problem,
    RecordAnalysis,
    Result,
    is_blank,
    refusal,
)


def analysis(version: str = "1", model: str = "feedback") -> Analysis:
    return Analysis(sentiment=Sentiment.NEGATIVE, point=PointKind.PAIN, model=model, model_version=version)


def problem(version: str = "1", reason: str = "MODEL_FAILED") -> Problem:
    return Problem(reason, "why", "feedback", version)


def record(result: Result, interaction: str = "i-1") -> RecordAnalysis:
    return RecordAnalysis(interaction, "ana", result)


def given_(*commands: RecordAnalysis) -> Analysed:
    return run(commands)[0]


def run(commands: Sequence[RecordAnalysis]) -> tuple[Analysed, list[FeedbackAnalyzed | FeedbackAnalysisFailed]]:
    feedback = Feedback()
    state, events = feedback.initial(), []
    for command in commands:
        for event in feedback.decide(command, state):
            assert isinstance(event, FeedbackAnalyzed | FeedbackAnalysisFailed)
            events.append(event)
            state = feedback.evolve(state, event)
    return state, events


def version_of(event: FeedbackAnalyzed | FeedbackAnalysisFailed) -> str:
    by = event if isinstance(event, FeedbackAnalysisFailed) else event.analysis
    assert by is not None
    return by.model_version


def test_an_analysis_is_recorded_with_what_it_is_about() -> None:
    assert Feedback().decide(record(analysis()), given_()) == [
        FeedbackAnalyzed(interaction_event_id="i-1", customer_id="ana", analysis=analysis())
    ]


def test_a_failure_is_recorded_with_its_reason_and_model() -> None:
    assert Feedback().decide(record(problem()), given_()) == [
        FeedbackAnalysisFailed(
            interaction_event_id="i-1",
            customer_id="ana",
            reason="MODEL_FAILED",
            message="why",
            model="feedback",
            model_version="1",
        )
    ]


@pytest.mark.parametrize("again", [analysis(), problem()])
def test_one_version_analyses_once(again: Result) -> None:
    assert Feedback().decide(record(again), given_(record(analysis()))) == []


def test_a_failure_counts_once_but_may_be_followed_by_an_analysis() -> None:
    state = given_(record(problem()))
    assert Feedback().decide(record(problem(reason="INVALID_UTF8")), state) == []
    assert len(Feedback().decide(record(analysis()), state)) == 1
    assert Feedback().decide(record(analysis()), given_(record(problem()), record(analysis()))) == []


@pytest.mark.parametrize("other", [analysis("2"), analysis(model="rival"), problem("2")])
def test_another_version_has_its_own_say(other: Result) -> None:
    assert len(Feedback().decide(record(other), given_(record(analysis())))) == 1


def test_another_interaction_has_its_own_analysis() -> None:
    assert len(Feedback().decide(record(analysis(), "i-2"), given_(record(analysis(), "i-1")))) == 1


RESULTS = st.sampled_from([analysis("1"), analysis("2"), problem("1"), problem("2")])
COMMANDS = st.builds(record, RESULTS, st.sampled_from(["i-1", "i-2"]))


@given(st.lists(COMMANDS, max_size=30))
def test_in_any_order_and_number_each_version_says_each_thing_once(commands: list[RecordAnalysis]) -> None:
    _, events = run(commands)
    said = [(type(event), event.interaction_event_id, version_of(event)) for event in events]
    assert len(said) == len(set(said))
    for command in commands:
        if isinstance(command.result, Analysis):
            assert (FeedbackAnalyzed, command.interaction_event_id, command.result.model_version) in said


@given(st.lists(COMMANDS, max_size=20))
def test_repeating_a_history_adds_nothing(commands: list[RecordAnalysis]) -> None:
    state, _ = run(commands)
    feedback = Feedback()
    assert all(feedback.decide(command, state) == [] for command in commands)


@pytest.mark.parametrize("text", ["", " ", "\n\t\r", "\u00a0\u2003"])
def test_blank_texts_are_refused_without_asking_a_model(text: str) -> None:
    assert is_blank(text)
    refused = refusal(text)
    assert refused is not None
    assert (refused.reason, refused.model) == ("EMPTY_TEXT", "")


def test_texts_are_measured_in_bytes() -> None:
    assert refusal("x" * MAX_TEXT_BYTES) is None
    refused = refusal("é" * (MAX_TEXT_BYTES // 2 + 1))
    assert refused is not None
    assert (refused.reason, refused.message) == ("TEXT_TOO_LONG", "at most 16384 bytes of UTF-8, has 16386")


@pytest.mark.parametrize("text", ["\0", "ok", "?!", "😀" * 4096, "مرحبا", "<b>x</b>"])
def test_odd_texts_are_for_the_model_to_judge(text: str) -> None:
    assert refusal(text) is None
