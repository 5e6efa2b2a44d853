import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens.errors import PositionError
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality, Segment, TokenSet

MODEL = tiny_model()
CLIP = tiny_clip(5.0, size=(84, 56))
INPUTS = MODEL.prepare(
    [CLIP, "and then", tiny_clip(2.0, seed=1, size=(56, 84))], "is the red dog red ?",
    options=["a dog", "a bell"], system="answer in a word", answer_prefix="it is",
)  # fmt: skip
TOKENS = INPUTS.tokens
OTHER = MODEL.prepare(CLIP, "what do you hear ?").tokens
N = len(TOKENS)


@st.composite
def sets(draw):
    chosen = draw(st.lists(st.integers(0, N - 1), unique=True, max_size=12))
    return TokenSet(torch.tensor(chosen, dtype=torch.long), TOKENS, draw(st.booleans()))


def members(tokens):
    return set(tokens) | ({N, N + 7} if tokens.open_ended else set())


@given(a=sets(), b=sets(), c=sets())
def test_sets_combine_as_sets(a, b, c):
    assert members(a & b) == members(a) & members(b)
    assert members(a | b) == members(a) | members(b)
    assert members(a - b) == members(a) - members(b)
    assert members(a ^ b) == members(a) ^ members(b)
    assert members(~a) == ({*range(N), N, N + 7}) - members(a)
    assert ~~a == a and a - a == TOKENS.at([])
    assert a & (b | c) == (a & b) | (a & c)
    assert ~(a | b) == ~a & ~b
    assert (a == b) == (members(a) == members(b)) and (a != b or hash(a) == hash(b))
    assert bool(a) == bool(members(a)) and len(a) == len(set(a))
    for one in (a & b, a | b, a - b, a ^ b):
        assert len(one.positions.unique()) == len(one)
    everywhere = torch.arange(N + 8)
    assert set(everywhere[a.holds(everywhere)].tolist()) == set(a) | (set(range(N, N + 8)) if a.open_ended else set())
    assert a.mask.nonzero()[:, 0].tolist() == sorted(a)
    assert all((position in a) == (position in members(a)) for position in (0, 3, N - 1, N))


@given(a=sets(), b=sets())
def test_the_order_is_the_left_operands(a, b):
    for one in (a & b, a - b):
        assert list(one) == [position for position in a if position in set(one)]
    if list(a) != sorted(a):
        assert list(a | b)[: len(a)] == list(a)
    assert list(a.sorted()) == sorted(a)


def test_modalities_partition_the_prompt():
    kinds = [TOKENS.text, TOKENS.audio, TOKENS.video, TOKENS.image, TOKENS.separator, TOKENS.special]
    assert sum(len(kind) for kind in kinds) == N
    assert TOKENS.all == TOKENS.text | TOKENS.media | TOKENS.special
    assert set(TOKENS.modality[TOKENS.audio.positions].tolist()) == {Modality.AUDIO}
    assert list(TOKENS.last) == [N - 1] and N in TOKENS.generated and N - 1 not in TOKENS.generated


def text_of(tokens):
    return "".join(TOKENS.strings[position] for position in tokens)


def test_segments_hold_what_was_written_into_them():
    assert text_of(TOKENS.system).strip() == "answer in a word"
    assert text_of(TOKENS.context).strip() == "and then"
    assert text_of(TOKENS.question).strip() == "is the red dog red ?"
    assert text_of(TOKENS.option).split() == ["A", ".", "a", "dog", "B", ".", "a", "bell"] or "A. a dog" in text_of(
        TOKENS.option
    )
    assert text_of(TOKENS.answer).strip() == "it is"
    assert set(TOKENS.segment[TOKENS.media.positions].tolist()) == {Segment.MEDIA}
    assert TOKENS.prompt.count("<|VIDEO|>") == 2


def test_segments_are_found_where_the_question_comes_first_and_repeats_the_system_message():
    text = "You are a helpful assistant."
    tokens = MODEL.prepare(CLIP, text, order="question_first").tokens
    assert "".join(tokens.strings[p] for p in tokens.question) == text
    assert "".join(tokens.strings[p] for p in tokens.system) == text
    assert max(tokens.system) < min(tokens.question) < min(tokens.media)


def test_words_are_found_wherever_they_occur():
    assert text_of(TOKENS.find("red")).split() == ["red", "red"]
    assert TOKENS.find("red dog") & TOKENS.question == TOKENS.find("red dog")
    assert len(TOKENS.find("a dog") & TOKENS.option) >= 2
    with pytest.raises(PositionError, match="does not contain 'zebra'. It reads: "):
        TOKENS.find("zebra")
    with pytest.raises(PositionError, match="does not contain ''"):
        TOKENS.find("")


@given(start=st.floats(-1, 6), length=st.floats(0.01, 4))
def test_seconds_choose_what_overlaps_them(start, length):
    chosen = set(TOKENS.seconds(start, start + length))
    assert chosen == {i for i in TOKENS.media if TOKENS.start[i] < start + length and TOKENS.end[i] > start}


def test_seconds_may_be_true_or_nominal():
    tokens = MODEL.prepare(CLIP, "?", nominal_fps=1.0).tokens
    assert tokens.seconds(2, 3) & tokens.video == tokens.frames(2)
    assert tokens.seconds(2, 4, time="nominal") & tokens.video == tokens.frames(1)
    with pytest.raises(PositionError, match=r"seconds\(2.0, 2.0\) is an empty span. Pass a start before"):
        tokens.seconds(2.0, 2.0)


def test_frames_clips_and_regions():
    assert len(TOKENS.frames(0) & TOKENS.clips(0)) == 6 and len(TOKENS.clips(0) & TOKENS.video) == 5 * 6
    assert TOKENS.clips(0) | TOKENS.clips(1) == TOKENS.media and not TOKENS.clips(2)
    mask = torch.zeros(3, 2, dtype=torch.bool)
    mask[2, 1] = True
    every = TOKENS.region(mask)
    assert [TOKENS.labels[p] for p in every] == [f"v{frame}[2,1]" for frame in range(5)]
    assert TOKENS.region(mask, frame=3) == every & TOKENS.frames(3)
    whole = torch.zeros(5, 3, 2, dtype=torch.bool)
    whole[4, 0, 1] = True
    assert [TOKENS.labels[p] for p in TOKENS.region(whole)] == ["v4[0,1]"]
    assert [TOKENS.labels[p] for p in TOKENS.region(torch.ones(2, 3, dtype=torch.bool), clip=1, frame=1)][
        0
    ] == "c1.v1[0,0]"
    with pytest.raises(PositionError, match=r"shape \[2, 3\], but the patches are \[5, 3, 2\].*or \[3, 2\] for every"):
        TOKENS.region(torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(PositionError, match="clip 2 has no patches"):
        TOKENS.region(mask, clip=2)


def test_positions_are_checked_and_may_count_from_the_end():
    assert list(TOKENS.at([3, -1, 0])) == [3, N - 1, 0]
    with pytest.raises(
        PositionError, match=rf"position {N} is outside the prompt, which has {N} tokens \(0 to {N - 1}\)"
    ):
        TOKENS.at([N])
    with pytest.raises(PositionError, match="come twice. Pass each position once"):
        TOKENS.at([N - 1, -1])


@given(seed=st.integers(0, 99), share=st.integers(1, 20))
def test_random_sets_match_in_count_or_by_chunk_and_are_seeded(seed, share):
    like = TOKENS.at([*TOKENS.audio.positions[::share].tolist(), *TOKENS.video.positions[::share].tolist()])
    for match, kinds in (("count", TOKENS.modality), ("chunk", TOKENS.chunk)):
        drawn = TOKENS.random_like(like, seed=seed, match=match)
        assert sorted(kinds[drawn.positions].tolist()) == sorted(kinds[like.positions].tolist())
        assert drawn == TOKENS.random_like(like, seed=seed, match=match)
    draws = {frozenset(TOKENS.random_like(like, seed=s)) for s in range(5)}
    assert share == 1 or len(draws) > 1


def test_random_sets_are_drawn_from_within():
    sinks = TOKENS.at(TOKENS.video.positions[:5].tolist())
    for seed in range(20):
        assert not TOKENS.random_like(sinks, seed=seed, within=TOKENS.video - sinks) & sinks
    with pytest.raises(PositionError, match="5 positions were asked of count group 2, which has 3 .*Widen `within`"):
        TOKENS.random_like(sinks, seed=0, within=TOKENS.at(TOKENS.video.positions[:3].tolist()))


def test_sets_of_other_layouts_are_refused():
    for combine in (lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a - b, lambda a, b: a ^ b):
        with pytest.raises(PositionError, match="different layouts. Sets combine within one prompt"):
            combine(TOKENS.audio, OTHER.audio)
    with pytest.raises(PositionError, match="another layout. Take the set from this prompt's tokens"):
        TOKENS.random_like(OTHER.audio, seed=0)
    assert TOKENS.audio != OTHER.audio


def test_prompts_that_differ_in_content_only_share_a_layout():
    same = MODEL.prepare(CLIP.silenced().blanked(), "what do you hear ?").tokens
    assert same.layout == OTHER.layout and same.audio == OTHER.audio
    longer = MODEL.prepare(CLIP, "what do you hear now ?").tokens
    other_time = MODEL.prepare(CLIP, "what do you hear ?", nominal_fps=1.0).tokens
    assert len({longer.layout, other_time.layout, OTHER.layout}) == 3


def test_labels_and_table_say_what_a_position_is():
    frame = OTHER.to_frame()
    assert len(frame) == len(OTHER) and frame.index.name == "position"
    assert frame.label[min(OTHER.audio)] == "a0.00s" and frame.label[max(OTHER.audio)] == "a4.96s"
    assert frame.label[min(OTHER.video)] == "v0[0,0]" and frame.label[0] == "<|im_start|>"
    assert all(" " not in label for label in OTHER.labels)
    assert repr(OTHER.video).startswith(f"TokenSet(30 of {len(OTHER)}, v0[0,0]@")
    assert "every later position" in repr(OTHER.last | OTHER.generated)
