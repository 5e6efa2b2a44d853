import pytest
import torch

from avlens.errors import PositionError, PromptError
from avlens.groups import find_options, interleave, token_groups, units
from avlens.samples import choice_question
from avlens.testing import tiny_clip, tiny_model

MODEL = tiny_model()
CLIP, OTHER = tiny_clip(2.6), tiny_clip(1.2, seed=1)


def words(tokens, chosen):
    return "".join(tokens.strings[i] for i in chosen).strip()


def test_groups_of_a_choice_share_no_token_and_are_found_by_letters():
    tokens = MODEL.prepare(CLIP, "what is it ?", options=["a dog", "a bell", "rain"]).tokens
    groups = token_groups(tokens, correct="B")
    assert words(tokens, groups["correct option"]) == "B. a bell"
    assert words(tokens, groups["incorrect options"]) == "A. a dogC. rain"
    assert words(tokens, groups["question"]) == "what is it ?"
    assert groups["video"] == tokens.video and groups["audio"] == tokens.audio and groups["last"] == tokens.last
    assert groups["generated"].open_ended
    seen = tokens.at([])
    for name in ("video", "audio", "question", "correct option", "incorrect options", "tail", "last"):
        assert groups[name] and not groups[name] & seen, name
        seen = seen | groups[name]
    assert words(tokens, token_groups(tokens, correct="A", part="letter")["options"]) == "ABC"
    assert words(tokens, token_groups(tokens, correct="C", part="text")["correct option"]) == "rain"


@pytest.mark.parametrize("order", ["media_first", "question_first"])
def test_options_given_to_prepare_and_options_in_the_question_are_the_same(order):
    given = MODEL.prepare(CLIP, "what is it ?\n", options=["a dog", "a bell"], order=order).tokens
    listed = MODEL.prepare(
        CLIP, choice_question("what is it ?", ["a dog", "a bell"], "Say a letter."), order=order
    ).tokens
    for part in ("all", "letter", "text"):
        one, other = find_options(given, part=part), find_options(listed, part=part)
        assert [words(given, chosen) for chosen in one.values()] == [words(listed, chosen) for chosen in other.values()]
    question = words(listed, token_groups(listed)["question"])
    assert "Say a letter." in question and "dog" not in question and "A" not in question


def test_options_may_have_lines_and_letters_in_them():
    tokens = MODEL.prepare(CLIP, "A. Bell asks: which ?", options=["A. x", "two\nlines", "C. y"]).tokens
    assert [words(tokens, chosen) for chosen in find_options(tokens).values()] == [
        "A. A. x",
        "B. two\nlines",
        "C. C. y",
    ]
    assert find_options(MODEL.prepare(CLIP, "what is it ?").tokens) == {}


def test_interleaved_items_in_any_order():
    for order in (
        ("candidates", "question", "reference", "options"),
        ("question", "reference", "candidates", "options"),
        ("options", "reference", "question", "candidates"),
    ):
        laid = interleave(
            [CLIP, "or", OTHER, OTHER.frames[0]], "which is it ?", OTHER, options=["one", "two"], order=order
        )
        inputs = MODEL.prepare(laid.parts, options=laid.options)
        tokens, groups = inputs.tokens, laid.groups(inputs.tokens, correct="B")
        place = order[:3].index("reference")
        assert laid.reference == (3 if "candidates" in order[:place] else 0)
        assert groups["reference"] == tokens.clips(laid.reference) & tokens.media
        assert groups["candidates"] == tokens.media - groups["reference"]
        assert words(tokens, groups["question"]) == "which is it ?" and words(tokens, groups["context"]) == "or"
        assert (
            words(tokens, groups["correct option"]) == "B. two"
            and words(tokens, groups["incorrect options"]) == "A. one"
        )


def test_units_by_hand():
    tokens = MODEL.prepare([CLIP, OTHER], "which ?").tokens
    frames, chunks, clips = (units(tokens, across) for across in ("frames", "chunks", "clips"))
    for one in tokens.video:
        for other in tokens.video:
            together = bool(tokens.clip[one] == tokens.clip[other] and tokens.frame[one] == tokens.frame[other])
            assert bool(frames[one] == frames[other]) == together
    assert torch.equal(chunks, tokens.chunk) and torch.equal(clips, tokens.clip)
    assert len(units(tokens, "tokens").unique()) == len(tokens)


def test_what_is_not_there_is_said():
    tokens = MODEL.prepare(CLIP, "what ?", options=["a", "b"]).tokens
    with pytest.raises(PositionError, match="'C', but its options are A, B"):
        token_groups(tokens, correct="C")
    with pytest.raises(PositionError, match="the prompt lists none"):
        token_groups(MODEL.prepare(CLIP, "what ?").tokens, correct="A")
    with pytest.raises(PositionError, match="reference is 1, but the prompt holds 1 clips"):
        token_groups(tokens, reference=1)
    with pytest.raises(PositionError, match="does not contain 'why'"):
        token_groups(tokens, question="why")
    with pytest.raises(PromptError, match="Name each of them once"):
        interleave([CLIP], "which ?", OTHER, order=("candidates", "question"))
