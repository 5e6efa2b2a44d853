import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avlens.errors import MetricError
from avlens.metrics.chair import SCORES, chair
from avlens.metrics.vocabulary import Vocabulary

NAMES = ("dog", "cat", "car", "drum")
VOCABULARY = Vocabulary(dict.fromkeys(NAMES, ()))
captions = st.lists(st.lists(st.sampled_from(NAMES), max_size=5), min_size=1, max_size=6)


def test_sums_are_of_the_corpus_and_not_means_of_ratios():
    # First caption: dog, cat, dog, car; dog is true: 2 of 4 hallucinated. Second: puppy (a dog), true: 0 of 1.
    result = chair(["A dog, a cat and the dog near a car.", "Puppies!"], [["dog barking"], ["dog", "church bells"]])
    assert result.scores["Cs"] == 50.0
    assert result.scores["Ci"] == pytest.approx(100 * 2 / 5)  # not (2/4 + 0/1) / 2 = 25
    assert result.scores["precision"] == pytest.approx(60.0)
    assert result.scores["recall"] == pytest.approx(100 * 2 / 3)  # dog; dog of dog and bell
    assert result.scores["F1"] == pytest.approx(2 * 60 * (200 / 3) / (60 + 200 / 3))
    assert result.scores["length"] == 5.5  # 10 words and 1
    frame = result.to_frame()
    assert frame["hallucinated"].tolist() == [("cat", "car"), ()]
    assert frame["missed"].tolist() == [(), ("bell",)]
    assert frame["Ci"].tolist() == [50.0, 0.0] and frame["recall"].tolist() == [100.0, 50.0]


def test_published_precision_follows_from_ci():
    # Jung et al., VGGSound-Animal, vanilla: Ci 37.13 and F1 55.24 mean a recall of 49.3.
    precision, f1 = 100 - 37.13, 55.24
    assert f1 * precision / (2 * precision - f1) == pytest.approx(49.3, abs=0.05)


def test_silence_about_objects_is_no_hallucination_and_no_recall():
    result = chair(["Something happens.", "It goes on."], [["dog"], ["cat"]])
    assert [result.scores[name] for name in ("Cs", "Ci", "recall", "F1")] == [0.0, 0.0, 0.0, 0.0]
    assert math.isnan(result.to_frame()["Ci"][0])


def test_what_cannot_be_computed_is_nan():
    assert all(math.isnan(value) for value in chair([], []).scores.values())
    unlabelled = chair(["a dog"], [[]])
    assert unlabelled.scores["Ci"] == 100.0 and math.isnan(unlabelled.scores["recall"])
    assert math.isnan(unlabelled.scores["F1"]) and math.isnan(unlabelled.intervals["Cs"].low)


def test_what_the_vocabulary_does_not_know_is_reported():
    result = chair(["a dog"], [["dog", "mouse clicking", "skidding"]], vocabulary=VOCABULARY)
    assert result.unknown == ("mouse clicking", "skidding") and result.scores["recall"] == 100.0
    assert "2 true objects unknown" in repr(result)


def test_a_label_with_a_slash_is_one_object_under_two_names():
    result = chair(["A crocodile hisses."], [["alligator/crocodile", "alligators, crocodiles hissing"]])
    assert result.captions[0].true == {"alligator"} and result.scores["Ci"] == 0.0


@given(captions, st.integers(0, 3))
def test_bounds_seeds_and_order(mentioned, seed):
    texts = [" and a ".join(["a", *names]) for names in mentioned]
    truths = [names[:1] + ["cat"] for names in mentioned]
    result = chair(texts, truths, vocabulary=VOCABULARY, n_draws=40, seed=seed)
    again = chair(texts[::-1], truths[::-1], vocabulary=VOCABULARY, n_draws=40, seed=seed)
    assert {name: pytest.approx(value, nan_ok=True) for name, value in again.scores.items()} == result.scores
    for name in SCORES:
        interval = result.intervals[name]
        assert name == "length" or 0 <= result.scores[name] <= 100
        assert math.isnan(interval.low) or interval.low <= interval.high
    assert all(len(one.mentioned) == len(names) for one, names in zip(result.captions, mentioned, strict=True))


def test_more_truth_never_raises_hallucination():
    texts = ["a dog and a car", "a drum"]
    less = chair(texts, [["dog"], []], vocabulary=VOCABULARY).scores
    more = chair(texts, [["dog", "car"], ["cat"]], vocabulary=VOCABULARY).scores
    assert more["Ci"] < less["Ci"] and more["Cs"] < less["Cs"]


def test_intervals_cover_the_score_and_shrink_with_more_captions():
    few = chair(["a dog", "a car"] * 5, [["dog"]] * 10, vocabulary=VOCABULARY).intervals["Cs"]
    many = chair(["a dog", "a car"] * 80, [["dog"]] * 160, vocabulary=VOCABULARY).intervals["Cs"]
    assert few.low < 50 < few.high and many.low < 50 < many.high
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_what_does_not_fit_is_refused():
    with pytest.raises(MetricError, match="Pass one for each"):
        chair(["a dog"], [])
    with pytest.raises(MetricError, match=r"such as \['dog'\]"):
        chair(["a dog"], ["dog"])
