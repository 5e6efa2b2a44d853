from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avlens.analyses.dominance import (
    ModalityDominance,
    head_dominance,
    modality_dominance,
    read_by_modality,
    spearman,
    split_sinks,
)
from avlens.cache import AVCache
from avlens.errors import BatchError, MissingActivationError, PositionError
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality
from tests.analyses.test_sinks import token_map
from tests.helpers import Largest, in_chunks_of


def cache_of(pattern: torch.Tensor, kinds: str) -> AVCache:
    return AVCache({"blocks.0.attn.hook_pattern": pattern[None]}, None, [token_map(kinds)])


def random_pattern(seed: int, heads: int, length: int) -> torch.Tensor:
    scores = torch.randn(heads, length, length, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)


def test_by_hand():
    # Positions: 0 the sink (text), 1 and 2 video, 3 audio. One head.
    # Later video queries pay 0.2 and 0.4 to it: v = 0.3. The later audio query pays 0.1: a = 0.1. MDS = 0.2 / 0.4.
    pattern = torch.zeros(1, 4, 4)
    pattern[0, 1, 0], pattern[0, 2, 0], pattern[0, 3, 0] = 0.2, 0.4, 0.1
    cache = cache_of(pattern, "tvva")
    result = modality_dominance(cache, cache.tokens.at([0]))
    assert result.score.item() == pytest.approx(0.5)
    assert result.from_video.item() == pytest.approx(0.3)
    assert not result.one_sided.item()


def test_a_sink_that_nothing_reads_scores_nan_and_one_that_only_audio_can_read_is_flagged():
    cache = cache_of(random_pattern(0, 2, 4), "tvaa")
    result = modality_dominance(cache, cache.tokens.at([1, 2, 3]))
    assert result.score[0, :2].tolist() == [-1, -1]  # after position 1 there is no video
    assert result.score[0, 2].isnan()
    assert result.one_sided.tolist() == [True, True, False]


@given(st.integers(0, 2**16), st.integers(1, 4), st.text("tva", min_size=2, max_size=14))
@settings(deadline=None, max_examples=40)
def test_it_equals_the_loop_and_changes_sign_when_the_modalities_are_exchanged(seed, heads, kinds):
    pattern = random_pattern(seed, heads, len(kinds))
    cache = cache_of(pattern, kinds)
    score = modality_dominance(cache, cache.tokens.all).score[0]
    for sink in range(len(kinds)):
        later = {kind: [q for q in range(sink + 1, len(kinds)) if kinds[q] == kind] for kind in "va"}
        v, a = (float(pattern[:, later[kind], sink].mean()) if later[kind] else 0.0 for kind in "va")
        expected = (v - a) / (v + a) if v + a > 0 else float("nan")
        assert score[sink].item() == pytest.approx(expected, abs=1e-5, nan_ok=True)
    exchanged = cache_of(pattern, kinds.translate(str.maketrans("va", "av")))
    other = modality_dominance(exchanged, exchanged.tokens.all).score[0]
    torch.testing.assert_close(other, -score, equal_nan=True)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_streamed_equals_stored_in_chunks_of_rows(monkeypatch, dtype, off):
    in_chunks_of(7, monkeypatch)
    model = tiny_model(n_layers=3).to(dtype)
    inputs = model.prepare(tiny_clip(3.0), "what do you hear ?")
    _, stored = model.run_with_cache(inputs, names_filter=["pattern"])
    _, streamed = model.run_with_cache(inputs, names_filter=[], reductions=read_by_modality(inputs.tokens))
    with Largest() as largest:
        ours = modality_dominance(streamed, inputs.tokens.media)
    assert largest.numel <= 3 * 4 * len(inputs.tokens)  # layers, heads, positions
    slow = modality_dominance(stored, inputs.tokens.media)
    torch.testing.assert_close(ours.score, slow.score, equal_nan=True, atol=off, rtol=off)


def scored(means: list[float], kinds: str) -> ModalityDominance:
    tokens = token_map(kinds)
    score = torch.tensor([means])
    return ModalityDominance(score, score, score, torch.zeros(len(means), dtype=torch.bool), tokens.all, (0,), {})


def test_splits_by_hand():
    result = scored([0.9, 0.1, -0.2, 0.8, -0.1, float("nan")], "vvvaaa")
    median = split_sinks(result)
    assert list(median.uni) == [0, 4] and list(median.cross) == [1, 2, 3]  # video has one odd: cross takes it
    assert list(median.unscored) == [5]
    sign = split_sinks(result, "sign")
    assert list(sign.uni) == [0, 1, 4] and list(sign.cross) == [2, 3]
    band = split_sinks(result, "band", band=0.3)
    assert list(band.cross) == [1, 2, 4]
    assert list(split_sinks(result, "quantile", quantile=0.0).uni) == []
    with pytest.raises(PositionError, match="between 0 and 1"):
        split_sinks(result, "quantile", quantile=2.0)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9), st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_the_median_split_is_a_partition_into_halves(means, seed):
    generator = torch.Generator().manual_seed(seed)
    kinds = "".join("va"[int(torch.randint(2, (1,), generator=generator))] for _ in means)
    # One of each modality that nothing reads: in a prompt with only one modality nothing is split.
    hubs = split_sinks(scored([*means, float("nan"), float("nan")], kinds + "va"))
    assert set(hubs.unscored) == {len(means), len(means) + 1}
    assert set(hubs.uni) | set(hubs.cross) == set(range(len(means))) and not set(hubs.uni) & set(hubs.cross)
    for kind in (Modality.VIDEO, Modality.AUDIO):
        sizes = [
            int((hubs_part.tokens.modality[hubs_part.positions] == kind).sum()) for hubs_part in (hubs.uni, hubs.cross)
        ]
        assert 0 <= sizes[1] - sizes[0] <= 1


def test_errors_say_what_to_do():
    model = tiny_model()
    inputs = model.prepare(tiny_clip(2.0), "hear ?")
    _, cache = model.run_with_cache(inputs, names_filter=["resid_pre"])
    with pytest.raises(MissingActivationError, match="read_by_modality"):
        modality_dominance(cache, inputs.tokens.media)
    _, both = model.run_with_cache(AVInputs.batch([inputs, inputs]), names_filter=["pattern"])
    with pytest.raises(BatchError, match=r"cache.row\(0\)"):
        modality_dominance(both, inputs.tokens.media)
    row = modality_dominance(both.row(1), inputs.tokens.media)
    assert row.score.shape == (3, len(inputs.tokens.media))
    assert replace(row, layers=(7,)).layers == (7,)


@given(st.integers(0, 2**16), st.integers(1, 4))
@settings(deadline=None, max_examples=15)
def test_per_head_and_with_fixed_queries_it_is_the_same_formula(seed, heads):
    kinds = "tvavvaavtva"
    pattern = random_pattern(seed, heads, len(kinds))
    cache = cache_of(pattern, kinds)
    asked = cache.tokens.at([5, 7, 9, 10])
    per_head = head_dominance(cache, cache.tokens.all, queries=asked)
    for head in range(heads):
        alone = cache_of(pattern[head : head + 1], kinds)
        expected = modality_dominance(alone, alone.tokens.all, queries=alone.tokens.at([5, 7, 9, 10])).score
        torch.testing.assert_close(per_head.score[:, head], expected, equal_nan=True)
    # By hand at position 0: video asks at 7 and 9, audio at 5 and 10.
    v, a = float(pattern[:, [7, 9], 0].mean()), float(pattern[:, [5, 10], 0].mean())
    fixed = modality_dominance(cache, cache.tokens.at([0]), queries=asked)
    assert fixed.score.item() == pytest.approx((v - a) / (v + a), abs=1e-5)
    assert len(per_head.to_frame()) == heads * len(kinds)


def test_fixed_queries_can_be_streamed():
    model = tiny_model(n_layers=2)
    inputs = model.prepare(tiny_clip(5.0), "what do you hear ?")
    asked = inputs.tokens.seconds(4.0, 5.0)
    _, stored = model.run_with_cache(inputs, names_filter=["pattern"])
    keep = [*read_by_modality(inputs.tokens), *read_by_modality(inputs.tokens, asked)]
    _, streamed = model.run_with_cache(inputs, names_filter=[], reductions=keep)
    for queries in (None, asked):
        slow, fast = (
            modality_dominance(cache, inputs.tokens.media, queries=queries).score for cache in (stored, streamed)
        )
        torch.testing.assert_close(fast, slow, equal_nan=True, atol=1e-4, rtol=1e-4)


def test_the_distribution_and_the_confound_by_hand():
    result = scored([0.1, 0.2, 0.3, 0.4, float("nan"), -0.5], "vvvvva")
    shown = result.distribution()
    assert shown.loc["video", ["sinks", "scored", "median"]].tolist() == pytest.approx([5, 4, 0.25])
    assert shown.loc["video", "iqr"] == pytest.approx(0.15)
    confound = result.position_confound()
    assert confound.loc["video", "spearman"] == pytest.approx(1.0)
    assert confound.loc["video", "share_unscored"] == pytest.approx(0.2)
    assert confound.loc["audio", "spearman"] != confound.loc["audio", "spearman"]  # NaN: one sink has no rank
    assert spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([4.0, 1, 3, 2])) == pytest.approx(-0.4)


def test_where_only_one_modality_can_read_nothing_is_a_hub():
    hubs = split_sinks(scored([-1.0, -1.0, -0.5], "taa"))
    assert list(hubs.uni) == list(hubs.cross) == [] and list(hubs.unscored) == [1, 2]
