"""Training: the data is well labelled, the solver finds the optimum, and the exported graph is the trained model."""

import sys
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from infra.triton import taxonomy
from infra.triton.train import (
    agreement,
    calibrate,
    corpus,
    corrections,
    evaluate,
    export,
    features,
    heads,
    linear,
    metrics,
    soup,
)
from infra.triton.train.evaluate import Ngrams
from infra.triton.train.ngrams import targets

KNOWN = taxonomy.load()


@pytest.fixture(scope="module")
def rows() -> list[corpus.Verbatim]:
    return corpus.load(KNOWN)


def test_every_language_has_enough_verbatims_of_every_kind(rows: list[corpus.Verbatim]) -> None:
    for language in KNOWN.languages:
        some = [row for row in rows if row.language == language]
        assert len(some) >= 4000
        assert min(Counter(row.point for row in some)[point] for point in corpus.POINTS) >= 600
        assert {leaf.path for leaf in KNOWN.leaves()} <= {row.need for row in some}


def test_the_split_keeps_groups_together_and_holds_out_a_fair_share(rows: list[corpus.Verbatim]) -> None:
    held_out = {row.group for row in rows if row.held_out}
    calibrating = {row.group for row in rows if row.calibrates}
    assert not held_out & {row.group for row in rows if not row.held_out}
    assert not calibrating & {row.group for row in rows if not row.calibrates}
    assert 0.1 < sum(row.held_out for row in rows) / len(rows) < 0.3
    assert 0.04 < sum(row.calibrates for row in rows) / len(rows) < 0.12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"need": "no/such/need"}, "verbatims.en.jsonl:1: need no/such/need is not in the taxonomy"),
        ({"sentiment": "angry"}, "unknown sentiment angry"),
        ({"point": "meh"}, "unknown point meh"),
        ({"language": "es"}, "language es in the file of en"),
        ({"text": " "}, "empty text"),
        ({"extra": "x"}, "unknown field"),
        ({"emotion": "meh"}, "unknown emotion meh"),
        ({"urgency": "soon"}, "unknown urgency soon"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path: Path, change: dict[str, str], message: str) -> None:
    row = corpus.Verbatim("Fast", "en", "positive", "delight", "delivery", "web", "terse", "delivery")
    content = msgspec.json.encode(msgspec.to_builtins(row) | change)
    (tmp_path / "verbatims.en.jsonl").write_bytes(content)
    with pytest.raises(corpus.CorpusError, match=message):
        corpus.load(KNOWN, tmp_path)


def test_the_solver_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    matrix, labels = rng.normal(size=(60, 8)), rng.integers(0, 3, 60)
    head = linear.fit(matrix, np.eye(3, dtype=bool)[labels], np.eye(3), np.ones(60), penalty=0.02)
    reference = LogisticRegression(C=1 / (0.02 * 60), max_iter=1000, tol=1e-8).fit(matrix, labels)
    np.testing.assert_allclose(linear_softmax(head.logits(matrix)), reference.predict_proba(matrix), atol=1e-3)


def linear_softmax(logits: linear.Matrix) -> linear.Matrix:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: linear.Matrix = powers / powers.sum(axis=1, keepdims=True)
    return result


def test_a_label_on_an_inner_node_leaves_its_children_open() -> None:
    rows = np.eye(4)
    allowed = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]], dtype=bool)
    head = linear.fit(rows, allowed, np.eye(3), np.ones(4), penalty=0.001)
    probability = linear_softmax(head.logits(rows))
    assert (probability[:2, :2].sum(axis=1) > 0.9).all()
    np.testing.assert_allclose(probability[:, 0], probability[:, 1], atol=1e-6)


def test_the_exported_graph_agrees_with_the_trained_weights(tmp_path: Path, rows: list[corpus.Verbatim]) -> None:
    """Through the served featuriser and int8 weights, against plain numpy on the unrounded ones."""
    some = rows[::50]
    raw = features.counts([row.text for row in some])
    idf = features.inverse_document_frequency(raw, 1.0)
    matrix = features.weighted(raw, idf)
    span = linear.Span.of(matrix)
    heads, expected, labels = [], {}, {}
    for name, (names, allowed, tree) in targets(some, KNOWN).items():
        head = linear.fit(span.rows, allowed, tree, np.ones(len(some)), penalty=1e-3)
        heads.append(export.HeadExport(name, head.weights(matrix, span), head.bias.astype(np.float32)))
        expected[name], labels[name] = linear_softmax(matrix @ heads[-1].weights + heads[-1].bias), names
    need_tree = targets(some, KNOWN)["need"][2]
    expected["need"] = expected["need"] @ need_tree.T
    path = tmp_path / "model.onnx"
    meta = {"taxonomy_version": "t", "labels": labels, "thresholds": {}}
    export.export(path, idf, heads, need_tree.astype(np.float32), meta)
    measured = Ngrams(path).probabilities([row.text for row in some])
    for name, probability in expected.items():
        np.testing.assert_allclose(measured[name], probability, atol=0.01)
        assert measured[name].shape == probability.shape


def test_parents_are_as_likely_as_their_children_together(rows: list[corpus.Verbatim]) -> None:
    model = Ngrams(features.VERSION_FOLDER / "model.onnx")
    need = model.probabilities([row.text for row in rows[::100]])["need"]
    index = {path: number for number, path in enumerate(model.labels["need"])}
    for path in KNOWN.needs:
        children = [index[other] for other in KNOWN.needs if other.rpartition("/")[0] == path]
        if children:
            np.testing.assert_allclose(need[:, index[path]], need[:, children].sum(axis=1), atol=1e-4)


texts = st.text(st.characters(codec="utf-8"), max_size=60)


@given(st.lists(texts, min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_features_of_a_text_do_not_depend_on_its_batch(batch: list[str]) -> None:
    ends, ids, counts = features.served.sparse(batch)
    assert len(ends) == len(batch) + 1
    assert ((ids >= 0) & (ids < features.BUCKETS)).all()
    assert (counts >= 1).all()
    for row, text in enumerate(batch):
        _, alone, alone_counts = features.served.sparse([text])
        part = slice(ends[row], ends[row + 1])
        np.testing.assert_array_equal(ids[part], alone)
        np.testing.assert_array_equal(counts[part], alone_counts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("MUITO BOM", "muito bom"),
        ("muuuuuuito", "muuito"),
        ("a  b\n c", "a b c"),
        ("pedido 123", "pedido 987"),
        ("é", "e\u0301"),
    ],
)
def test_spellings_that_mean_the_same(one: str, other: str) -> None:
    for first, second in zip(features.served.sparse([one]), features.served.sparse([other]), strict=True):
        np.testing.assert_array_equal(first, second)


def test_measures() -> None:
    assert metrics.macro_f1(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx(2 / 3)
    assert metrics.f1([True, True, False], [True, False, False]) == pytest.approx(2 / 3)
    confidence, correct = np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False])
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(0.15)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=30))
@settings(deadline=None)
def test_kappa_agrees_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if len({*first, *second}) > 1:
        assert agreement.kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))


def test_the_second_reader_labelled_held_out_rows_and_mostly_agrees(rows: list[corpus.Verbatim]) -> None:
    measured = agreement.measure(rows, agreement.load(rows))
    assert {"en", "es", "sl"} <= measured.keys()
    for questions in measured.values():
        assert questions["sentiment"].rows >= 50
        assert questions["sentiment"].kappa > 0.8
        assert questions["need_1"].kappa > 0.7


def test_a_reading_of_a_row_that_is_not_held_out_is_refused(tmp_path: Path, rows: list[corpus.Verbatim]) -> None:
    trained = next(row for row in rows if not row.held_out)
    labels = {name: getattr(trained, name) for name in agreement.Reading.__struct_fields__}
    path = tmp_path / "second_reader.jsonl"
    path.write_bytes(msgspec.json.encode(labels))
    with pytest.raises(corpus.CorpusError, match=r"second_reader\.jsonl:1: no held-out row"):
        agreement.load(rows, path)


def test_readers_are_compared_as_deep_as_both_labelled(rows: list[corpus.Verbatim]) -> None:
    shallow = next(row for row in rows if row.held_out and row.need.count("/") == 1 and row.emotion)
    labels = {name: getattr(shallow, name) for name in agreement.Reading.__struct_fields__}
    deep = agreement.Reading(**{**labels, "need": f"{shallow.need}/x", "sentiment": "other"})
    questions = agreement.measure(rows, [deep])["all"]
    assert questions["sentiment"].agreement == 0
    assert (questions["need_1"].agreement, questions["need_2"].agreement, questions["need_3"].rows) == (1, 1, 0)


def test_importing_the_served_features_does_not_change_the_path() -> None:
    assert str(features.VERSION_FOLDER) not in sys.path


def row(**labels: str) -> corpus.Verbatim:
    given = {"sentiment": "negative", "point": "pain", "need": "", "channel": "web", "author": "a", "theme": "t"}
    return corpus.Verbatim("x", "en", **{**given, **labels})


def test_what_a_label_admits() -> None:
    said = row(need="delivery/speed", emotion="anger")
    unsaid = row(need="")
    emotion = heads.allowed("emotion", [said, unsaid], KNOWN)
    assert emotion.sum(axis=1).tolist() == [1, len(corpus.EMOTIONS)]
    leaves = ["", *(leaf.path for leaf in KNOWN.leaves())]
    need = heads.allowed("need", [said, unsaid], KNOWN)
    assert [leaf for leaf, admitted in zip(leaves, need[0], strict=True) if admitted] == [
        leaf for leaf in leaves if leaf.startswith("delivery/speed/")
    ]
    assert [leaf for leaf, admitted in zip(leaves, need[1], strict=True) if admitted] == [""]
    assert heads.said("emotion", [said, unsaid]).tolist() == [0]


def test_the_threshold_is_the_lowest_that_is_right_often_enough() -> None:
    confidence = np.array([0.3, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    correct = np.array([False, False, False, True, True, True, True, True])
    assert calibrate.lowest(confidence, correct, wanted=0.6) == 0.0
    assert calibrate.lowest(confidence, correct, wanted=0.8) == pytest.approx(0.36)
    assert calibrate.lowest(confidence, correct, wanted=1.0) == pytest.approx(0.52)


def test_a_head_that_is_never_right_enough_still_tells_its_surest_answers() -> None:
    confidence = np.linspace(0.3, 0.9, 20)
    correct = np.arange(20) % 2 == 0
    told = confidence >= calibrate.lowest(confidence, correct, wanted=0.99)
    assert told.mean() >= calibrate.TOLD


def test_the_bootstrap_tells_a_gain_from_noise() -> None:
    rng = np.random.default_rng(4)
    truth = [str(label) for label in rng.integers(0, 3, 400)]
    poor = [label if luck < 0.6 else "0" for label, luck in zip(truth, rng.random(400), strict=True)]
    good = [label if luck < 0.9 else "0" for label, luck in zip(truth, rng.random(400), strict=True)]
    gain, low, high = evaluate.bootstrap(truth, poor, good, seed=1)
    assert gain == pytest.approx(metrics.macro_f1(truth, good) - metrics.macro_f1(truth, poor))
    assert 0 < low < gain < high
    _, low, high = evaluate.bootstrap(truth, good, poor, seed=1)
    assert high < 0
    assert evaluate.bootstrap(truth, good, good, seed=1) == (0, 0, 0)


def test_rare_answers_are_found_where_that_pays() -> None:
    """Four in a hundred are rare; the model sees them, but never holds one likelier than the common answer."""
    truth = ["common"] * 96 + ["rare"] * 4
    likely = np.tile([0.97, 0.03], (100, 1))
    likely[96:] = [0.7, 0.3]
    prior = np.log(np.array([0.96, 0.04]))
    assert calibrate.best(likely, 0.0).sum() == 0
    found = calibrate.strength(likely, prior, truth, ["common", "rare"])
    assert calibrate.best(likely, found * prior).tolist() == [0] * 96 + [1] * 4
    # Where rare labels cannot be told from common ones, nothing is gained by guessing them.
    likely[96:] = likely[0]
    found = calibrate.strength(likely, prior, truth, ["common", "rare"])
    assert calibrate.best(likely, found * prior).sum() == 0


def test_a_threshold_is_of_the_answer_that_is_given() -> None:
    said = {"emotion": "none", "intent": "none", "effort": "none"}
    rows = [row(urgency=label, **said) for label in ("normal", "normal", "high", "high")]
    likely = {"urgency": np.array([[0.3, 0.7], [0.05, 0.95], [0.4, 0.6], [0.45, 0.55]])}
    likely |= {name: np.ones((4, len(heads.labels(name, KNOWN)))) for name in heads.NAMES if name != "urgency"}
    plain = calibrate.thresholds(likely, {}, rows, KNOWN)["urgency"]
    adjusted = calibrate.thresholds(likely, {"urgency": [-1.0, 0.0]}, rows, KNOWN)["urgency"]
    # Unadjusted, all are "normal" and half is wrong; adjusted, the first is the one that is wrong.
    assert plain > 0.6
    assert 0.3 < adjusted <= 0.4


def test_priors_are_shares_of_those_that_say() -> None:
    found = np.exp(
        calibrate.priors("urgency", [row(urgency=label) for label in ("high", "normal", "normal", "")], KNOWN)
    )
    assert dict(zip(heads.labels("urgency", KNOWN), found, strict=True)) == pytest.approx(
        {"high": 2 / 5, "normal": 3 / 5}
    )


def exported(text: str, event_id: str = "e1", **analysis: object) -> bytes:
    """A line as `recorrido corrections` writes it."""
    line = {"text": text, "analysis": analysis, "interactionEventId": event_id, "channel": "web", "position": "12"}
    return msgspec.json.encode(line) + b"\n"


def test_of_a_correction_only_what_the_person_decided_is_learnt(tmp_path: Path) -> None:
    file = tmp_path / "corrections.jsonl"
    decided = ["ASPECT_POINT", "ASPECT_NEED", "ASPECT_EFFORT"]
    told = {"sentiment": "SENTIMENT_POSITIVE", "point": "POINT_KIND_ITCH", "effort": "EFFORT_NONE", "language": "en"}
    file.write_bytes(exported("A tracking page, please", **told, needPath="delivery/tracking", corrected=decided))
    (learnt,) = corrections.taught([], [file], KNOWN).rows
    assert (learnt.point, learnt.need, learnt.effort) == ("itch", "delivery/tracking", "none")
    assert (learnt.sentiment, learnt.language, learnt.emotion) == ("", "", "")
    assert learnt.weight > row().weight
    admitted = heads.allowed("sentiment", [learnt], KNOWN)
    assert admitted.all()
    file.write_bytes(exported("Thanks", sentiment="SENTIMENT_POSITIVE", corrected=["ASPECT_SENTIMENT"]))
    (learnt,) = corrections.taught([], [file], KNOWN).rows
    assert heads.allowed("need", [learnt], KNOWN).all()
    assert heads.said("need", [learnt]).tolist() == []
    file.write_bytes(exported("Thanks", corrected=["ASPECT_NEED"]))
    (learnt,) = corrections.taught([], [file], KNOWN).rows
    assert heads.allowed("need", [learnt], KNOWN).sum() == 1


def test_corrections_never_teach_what_judges_and_win_over_rows(tmp_path: Path, rows: list[corpus.Verbatim]) -> None:
    judging = next(each for each in rows if each.held_out)
    calibrating = next(each for each in rows if each.calibrates)
    seen = next(each for each in rows if not each.held_out and not each.calibrates and each.point == "pain")
    point = {"corrected": ["ASPECT_POINT"]}
    first, second = tmp_path / "one", tmp_path / "two"
    first.write_bytes(
        exported(judging.text.upper(), point="POINT_KIND_NONE", **point)
        + exported(f" {calibrating.text}\n", point="POINT_KIND_NONE", **point)
        + exported(seen.text, point="POINT_KIND_NONE", **point)
        + exported("said twice", point="POINT_KIND_PAIN", **point)
        + exported("nothing is decided here", point="POINT_KIND_PAIN")
        + exported("a need of another taxonomy", needPath="no/such/need", corrected=["ASPECT_NEED"])
        + exported("  ", point="POINT_KIND_PAIN", **point)
    )
    second.write_bytes(exported("Said  TWICE", "e2", point="POINT_KIND_DELIGHT", **point))
    found = corrections.taught(rows, [first, second], KNOWN)
    assert (found.used, found.judging, found.unknown) == (2, 2, 3)
    plain = corrections.taught(rows, [], KNOWN)
    assert len(found.rows) == len(plain.rows) + 1
    assert plain.rows == [each for each in rows if not each.held_out and not each.calibrates]
    changed = [new for new, old in zip(found.rows, plain.rows, strict=False) if new != old]
    assert changed == [msgspec.structs.replace(seen, point="none", weight=corrections.WEIGHT)]
    assert (found.rows[-1].point, found.rows[-1].theme) == ("delight", "e2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "x"', "corrections.jsonl:2: "),
        (b'{"text": "x"}', "corrections.jsonl:2: .*analysis"),
        (b'{"text": "\xff", "analysis": {}, "interactionEventId": "e"}', "corrections.jsonl:2: "),
    ],
)
def test_a_line_that_is_no_correction_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "corrections.jsonl"
    file.write_bytes(exported("fine", point="POINT_KIND_PAIN", corrected=["ASPECT_POINT"]) + content)
    with pytest.raises(corpus.CorpusError, match=message):
        corrections.taught([], [file], KNOWN)


def test_the_mean_of_models_is_the_mean_of_their_products() -> None:
    rng = np.random.default_rng(5)

    def member() -> dict[str, NDArray[np.float32]]:
        shapes = {"l0.q.up": (8, 3), "l0.q.down": (3, 6), "l0.q.b": (8,)}
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    members = [member(), member()]
    products = [each["l0.q.up"] @ each["l0.q.down"] for each in members]
    whole = soup.mean(members, rank=6)
    np.testing.assert_allclose(whole["l0.q.up"] @ whole["l0.q.down"], np.mean(products, axis=0), atol=1e-5)
    np.testing.assert_allclose(whole["l0.q.b"], (members[0]["l0.q.b"] + members[1]["l0.q.b"]) / 2, atol=1e-6)
    lower = soup.mean(members, rank=3)
    assert lower["l0.q.up"].shape == (8, 3)
    assert lower["l0.q.down"].shape == (3, 6)
    # No matrix of that rank is nearer: the distance is what the smaller singular values leave.
    left = np.linalg.svd(np.mean(products, axis=0), compute_uv=False)[3:]
    distance = np.linalg.norm(lower["l0.q.up"] @ lower["l0.q.down"] - np.mean(products, axis=0))
    assert distance == pytest.approx(float(np.sqrt((left**2).sum())), rel=1e-3)
    alone = soup.mean([members[0]], rank=3)
    np.testing.assert_allclose(alone["l0.q.up"] @ alone["l0.q.down"], products[0], atol=1e-5)


def test_an_encoder_between_the_pretrained_and_the_trained_one_lies_on_the_line_between_them() -> None:
    rng = np.random.default_rng(5)
    pretrained = {"l0.q.w": rng.normal(size=(4, 6)), "l0.q.b": rng.normal(size=4)}
    pretrained = {name: value.astype(np.float32) for name, value in pretrained.items()}
    learnt = {
        "l0.q.down": rng.normal(size=(2, 6)).astype(np.float32),
        "l0.q.up": rng.normal(size=(4, 2)).astype(np.float32),
        "l0.q.b": rng.normal(size=4).astype(np.float32),
        "head.point.w": rng.normal(size=(4, 6)).astype(np.float32),
    }
    for share in (0.0, 0.4, 1.0):
        between = soup.between(learnt, pretrained, share)
        trained = pretrained["l0.q.w"] + learnt["l0.q.up"] @ learnt["l0.q.down"]
        line = (1 - share) * pretrained["l0.q.w"] + share * trained
        np.testing.assert_allclose(pretrained["l0.q.w"] + between["l0.q.up"] @ between["l0.q.down"], line, atol=1e-5)
        biases = (1 - share) * pretrained["l0.q.b"] + share * learnt["l0.q.b"]
        np.testing.assert_allclose(between["l0.q.b"], biases, atol=1e-6)
        np.testing.assert_array_equal(between["head.point.w"], learnt["head.point.w"])
