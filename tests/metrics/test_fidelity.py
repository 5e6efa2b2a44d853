import math

import pytest

from avlens.errors import MetricError
from avlens.metrics.fidelity import (
    PROMPTS,
    ExactMatch,
    KeywordMatch,
    LanguageModelJudge,
    Verdict,
    caption_fidelity,
    parse_verdict,
    relative_drop,
)
from avlens.metrics.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("caption", "reference", "whole", "anywhere"),
    [
        ("A Bell.", "a bell", 1, 1),
        ("a red circle moves and a bell sounds", "a bell", 0, 1),
        ("bells", "bell", 0, 0),
        ("", "a bell", 0, 0),
    ],
)
def test_exact_matches(caption, reference, whole, anywhere):
    assert ExactMatch()(caption, reference, modality="audio").score == whole
    assert ExactMatch(anywhere=True)(caption, reference, modality="audio").score == anywhere


def test_keywords_by_hand():
    judge = KeywordMatch()
    assert judge("A puppy barks at a train.", "dog barking while a guitar plays", modality="audio").score == 0.5
    assert "guitar" in judge("A puppy barks.", "dog and guitar", modality="audio").reason
    assert math.isnan(judge("A dog.", "something hums", modality="audio").score)
    own = KeywordMatch(Vocabulary({"bell": ["chime"], "drum": []}))
    assert own("a chime", "bell", modality="audio").score == 1


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"score": 0.5, "reason": "half"}', 0.5),
        ('<think>{"score": 1.0}</think> So: {"score": 0.25, "reason": "little"}', 0.25),
        ('```json\n{"score": 1}\n```', 1.0),
        ("I would say 0.7.", math.nan),
        ('{"score": 7}', math.nan),
        ('{"score": "high"}', math.nan),
        ("", math.nan),
    ],
)
def test_answers_of_a_language_model_are_read_or_fail(answer, score):
    assert parse_verdict(answer).score == pytest.approx(score, nan_ok=True)


def test_a_language_model_is_asked_of_one_modality_at_a_time():
    asked = []
    judge = LanguageModelJudge(lambda prompt: asked.append(prompt) or '{"score": 1.0, "reason": "{}"}')
    found = caption_fidelity(["A {dog}."], {"audio": ["a dog barks"], "video": ["a lawn"]}, judge)
    assert "A {dog}." in asked[0] and "a dog barks" in asked[0] and "a lawn" not in asked[0]
    assert "what is heard" in asked[0] and "Ignore all that the caption says of what is seen" in asked[0]
    assert found.means["video"].estimate == 1
    assert all("{{" not in prompt and '{"score": 0.5' in prompt for prompt in PROMPTS.values())


def test_failures_count_apart():
    scores = iter([1.0, math.nan, 0.5, 0.0])
    found = caption_fidelity(
        ["a", "b", "c", "d"], {"audio": ["x"] * 4}, lambda caption, reference, *, modality: Verdict(next(scores))
    )
    assert found.failures == {"audio": 1} and found.means["audio"].n == 3 and found.means["audio"].n_missing == 1
    assert found.means["audio"].estimate == pytest.approx(0.5) and found.as_released("audio") == pytest.approx(1.5 / 4)
    assert list(found.to_frame().columns) == ["caption", "audio", "audio reason"]


def judged(scores):
    given = iter(scores)
    return caption_fidelity(
        ["c"] * len(scores), {"audio": ["r"] * len(scores)}, lambda c, r, *, modality: Verdict(next(given)), n_draws=10
    )


def test_the_relative_drop_by_hand():
    drop = relative_drop(judged([1.0, 1.0, 0.0]), judged([0.5, 0.0, math.nan, 0.25]), n_draws=2000)
    assert drop.estimate == pytest.approx((0.25 - 2 / 3) / (2 / 3)) and drop.n_missing == 1
    sure = relative_drop(judged([1.0] * 5), judged([0.25] * 700), n_draws=5000)
    assert (sure.low, sure.high) == (pytest.approx(-0.75), pytest.approx(-0.75))
    assert math.isnan(relative_drop(judged([0.0, 0.0]), judged([1.0, 1.0])).estimate)


def test_refusals():
    with pytest.raises(MetricError, match="one for each|one for"):
        caption_fidelity(["a"], {"audio": ["x", "y"]}, ExactMatch())
    with pytest.raises(MetricError, match="no references"):
        caption_fidelity(["a"], {}, ExactMatch())
    with pytest.raises(MetricError, match="the score 3"):
        caption_fidelity(["a"], {"audio": ["x"]}, lambda c, r, *, modality: Verdict(3.0))
