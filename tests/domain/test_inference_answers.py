"""What becomes of an answer that the model is not sure of."""

import pytest

from recorrido.inference.v1.events import Aspect, PointKind, Sentiment
from services.inference.triton import _answers, _Said


@pytest.mark.parametrize(
    ("confidence", "unsure", "told"),
    [
        (0.95, [], Sentiment.NEGATIVE),
        (0.6, ["sentiment"], Sentiment.NEGATIVE),
        (0.45, ["sentiment"], Sentiment.UNSPECIFIED),
        (0.0, ["sentiment"], Sentiment.UNSPECIFIED),
    ],
)
def test_an_unsure_answer_is_told_where_it_is_likelier_than_all_others(
    confidence: float, unsure: list[str], told: Sentiment
) -> None:
    said = _Said(sentiment="negative", sentiment_score=-0.3, confidence={"sentiment": confidence}, unsure=unsure)
    answers = _answers(said)
    assert answers["sentiment"] is told
    assert answers["unsure"] == tuple(Aspect.SENTIMENT for _ in unsure)
    assert (answers["sentiment_score"], answers["confidence"].sentiment) == (-0.3, confidence)
    assert answers["point"] is PointKind.UNSPECIFIED, "not answered at all"


def test_a_language_and_a_need_are_told_only_when_sure() -> None:
    likely = {"language": 0.8, "need": 0.8}
    said = _Said(language="sl", need="delivery/speed", confidence=likely, unsure=["language", "need"])
    assert (_answers(said)["language"], _answers(said)["need_path"]) == ("", "")
    assert _answers(_Said(language="sl", need="delivery/speed", confidence=likely))["need_path"] == "delivery/speed"
