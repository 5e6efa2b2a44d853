import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlens.errors import PositionError, ViewError
from avlens.tokens import Modality, Segment, TokenMap
from avlens.views.grouping import Group, aggregate, group, named_alone
from tests.helpers import assert_equal


def groups_of(*members):
    return [Group(str(m), Modality.TEXT, torch.tensor(m)) for m in members]


def prompt():
    """Start, system, 2 frames of 2 x 2 patches with 1 s each, 4 audio tokens of 0.5 s, a separator, and a question."""
    start = TokenMap.of(torch.tensor([1, 2]), ["<s>", "\n"], Modality.SPECIAL, Segment.TEMPLATE)
    system = TokenMap.of(torch.tensor([3]), ["be nice"], Modality.TEXT, Segment.SYSTEM)
    frame = torch.arange(2).repeat_interleave(4)
    video = TokenMap.of(
        torch.full((8,), 9), ["v"] * 8, Modality.VIDEO, Segment.MEDIA, clip=torch.zeros(8, dtype=torch.long),
        frame=frame, row=torch.tensor([0, 0, 1, 1] * 2), col=torch.tensor([0, 1] * 4),
        start=frame.double(), end=frame.double() + 1,
    )  # fmt: skip
    sound = torch.arange(4)
    audio = TokenMap.of(
        torch.full((4,), 8), ["a"] * 4, Modality.AUDIO, Segment.MEDIA, clip=torch.zeros(4, dtype=torch.long),
        audio_frame=sound, start=sound.double() / 2, end=sound.double() / 2 + 0.5,
    )  # fmt: skip
    newline = TokenMap.of(torch.tensor([7]), ["|"], Modality.SEPARATOR, Segment.MEDIA, clip=torch.tensor([0]))
    question = TokenMap.of(torch.tensor([4, 5]), [" who", "?"], Modality.TEXT, Segment.QUESTION)
    return TokenMap.join([start, system, video, audio, newline, question])


def labels(**options):
    return [one.label for one in group(prompt(), **options)]


def test_attention_between_groups_by_hand():
    pattern = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]])
    # Queries 1 and 2 pay 0.5 and 0.2 to key 0: 0.35 on average; they pay 0.5 and 0.8 to keys 1 and 2: 0.65.
    assert_equal(aggregate(pattern, groups_of([0], [1, 2])), torch.tensor([[[1.0, 0.0], [0.35, 0.65]]]))


def test_groups_need_not_be_runs_of_neighbours():
    pattern = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]])
    # Group (0, 2) reads itself with 1 and 0.2 + 0.5, and token 1 with 0 and 0.3.
    assert_equal(aggregate(pattern, groups_of([0, 2], [1])), torch.tensor([[[0.85, 0.15], [0.5, 0.5]]]))


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_rows_still_sum_to_one(seed, n_groups):
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.rand(3, 9, 9, generator=generator).tril().softmax(-1)
    of = torch.cat([torch.arange(n_groups), torch.randint(n_groups, (9 - n_groups,), generator=generator)])
    groups = groups_of(*((of == i).nonzero()[:, 0].tolist() for i in range(n_groups)))
    assert_equal(aggregate(pattern, groups).sum(-1), torch.ones(3, n_groups))


def test_groups_that_leave_a_position_out_are_refused():
    with pytest.raises(ViewError, match=r"leave out 1 of 3 .*group\(tokens\)"):
        aggregate(torch.eye(3)[None], groups_of([0], [2]))


def test_half_precision_is_summed_in_single():
    pattern = torch.full((1, 300, 300), 1 / 300).bfloat16()
    between = aggregate(pattern, groups_of(list(range(300))))
    assert between.dtype == torch.float32
    assert abs(float(between) - 300 * float(pattern[0, 0, 0])) < 1e-4


def test_overview_has_frames_seconds_and_words():
    assert labels() == [
        "★<s>@0", "template·×1", "system·×1", "v0·0-1s·×4", "v1·1-2s·×4", "a·0-1s·×2", "a·1-2s·×2",
        "separator·×1", "who@16", "?@17",
    ]  # fmt: skip


def test_a_sink_keeps_its_own_row_with_a_star_and_its_position():
    named = labels(sinks=prompt().at([4, 12]))
    assert {"★v0[0,1]@4", "v0·0-1s·×3", "★a0.50s@12", "a·0-1s·×1"} <= set(named)


def test_regions_are_quarters_of_frames_and_parts_of_the_prompt():
    named = labels(by="regions", audio_seconds=2)
    assert named[3:8] == ["v0·0-1s·TL·×1", "v0·0-1s·TR·×1", "v0·0-1s·BL·×1", "v0·0-1s·BR·×1", "v1·1-2s·TL·×1"]
    assert named[-4:] == ["a·0-2s·×4", "separator·×1", "question·×1", "?@17"]


def test_modalities_and_sinks_are_few_rows():
    few = ["★<s>@0", "template·×1", "system·×1", "video·×8", "audio·×4", "separator·×1", "question·×1", "?@17"]
    assert labels(by="modality") == few
    assert labels(by="sinks", sinks=prompt().at([3])) == [*few[:3], "★v0[0,0]@3", "video·×7", *few[4:]]


def test_neighbouring_frames_can_share_a_row():
    assert "v0-1·0-2s·×8" in labels(frames_per_row=2)


def test_each_token_can_have_its_own_row():
    tokens = prompt()
    named = [one.label for one in group(tokens, by="token")]
    assert named == ["★<s>@0", *(named_alone(tokens, position) for position in range(1, len(tokens)))]


def test_order_by_modality_puts_text_around_the_media():
    ranked = [one.modality for one in group(prompt(), by="overview", order="modality")]
    media = [kind for kind in ranked if kind not in (Modality.TEXT, Modality.SPECIAL)]
    assert media == [Modality.VIDEO] * 2 + [Modality.SEPARATOR] + [Modality.AUDIO] * 2
    assert ranked[:3] == [Modality.SPECIAL, Modality.SPECIAL, Modality.TEXT] and ranked[-1] == Modality.TEXT


@pytest.mark.parametrize("by", ["overview", "regions", "modality", "sinks", "token"])
def test_every_position_is_in_one_group_and_no_label_has_a_space(run, by):
    groups = group(run.tokens, by=by, sinks=run.sinks.tokens)
    assert sorted(torch.cat([one.positions for one in groups]).tolist()) == list(range(len(run.tokens)))
    assert not any(character.isspace() for one in groups for character in one.label)


def test_choices_that_do_not_exist_are_refused():
    for wrong, advice in (
        ({"by": "frame"}, "'overview'"),
        ({"order": "time"}, "'sequence'"),
        ({"by": "sinks"}, "sinks="),
        ({"audio_seconds": 0}, "more than 0"),
        ({"frames_per_row": 0}, "at least 1"),
    ):
        # the type checker of the tests refuses a choice of another name first
        with pytest.raises((ViewError, TypeError)) as refused:
            group(prompt(), **wrong)
        assert advice in str(refused.value)


def test_sinks_of_another_prompt_are_refused(run):
    with pytest.raises(PositionError, match="another layout"):
        group(prompt(), sinks=run.tokens.at([3]))
