from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avlens.analyses.sinks import ENERGY, Sinks, energy_in, find_sink_dims, find_sinks, sink_energy
from avlens.cache import AVCache
from avlens.datasets.synthetic import ball_and_bell
from avlens.errors import MissingActivationError, PositionError
from avlens.planting import planted_model, planted_sinks
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality, Segment, TokenMap


def token_map(kinds: str) -> TokenMap:
    codes = {"t": Modality.TEXT, "v": Modality.VIDEO, "a": Modality.AUDIO}
    runs = [TokenMap.of(torch.tensor([i]), [kind], codes[kind], Segment.MEDIA) for i, kind in enumerate(kinds)]
    return TokenMap.join(runs)


def sinks_of(flags: list[list[int]], kinds: str) -> Sinks:
    """Sinks with given flags [layer][pos]."""
    is_sink = torch.tensor(flags, dtype=torch.bool)
    layers = tuple(range(len(flags)))
    return Sinks(is_sink, is_sink.float(), is_sink.sum(0), layers, (0,), 0.5, token_map(kinds), {})


def test_energy_is_the_share_of_the_squared_norm():
    row = torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    assert energy_in(row, (1,)).item() == pytest.approx(16 / 25, abs=1e-6)
    assert energy_in(row, (0, 1)).item() == pytest.approx(16 / 25, abs=1e-6)  # the larger of the two
    assert energy_in(row, ()).item() == 0


@given(width=st.sampled_from([64, 128, 2048, 3584]), seed=st.integers(0, 2**16), scale=st.floats(0.1, 1000))
@settings(deadline=None, max_examples=30)
def test_the_threshold_is_the_same_sink_at_every_width_and_scale(width, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    resid = torch.randn(40, width, generator=generator)
    resid[:, 5] *= torch.linspace(0, 3 * width**0.5, 40)
    x = resid / resid.pow(2).mean(-1, keepdim=True).sqrt()
    tau = 25 * (width / 3584) ** 0.5
    clear = (x[:, 5].abs() / tau - 1).abs() > 1e-3  # away from the threshold's rounding
    assert torch.equal((energy_in(scale * resid, (5,)) > ENERGY)[clear], (x[:, 5].abs() > tau)[clear])


@given(st.integers(0, 2**16), st.integers(1, 5), st.sampled_from([1, 2, 3, 4.5]))
@settings(deadline=None, max_examples=40)
def test_top_is_the_papers_most_common(seed, n_layers, n):
    generator = torch.Generator().manual_seed(seed)
    flags = torch.rand(n_layers, 12, generator=generator) < 0.4
    kinds = "tvvaavvaatta"
    sinks = sinks_of(flags.int().tolist(), kinds)
    flagged = [i for layer in flags for i in layer.nonzero()[:, 0].tolist()]
    top = [i for i, _ in Counter(flagged).most_common(int(12 / n))]
    assert list(sinks.top(n)) == [i for i in top if kinds[i] in "av"]


def test_selections_by_hand():
    sinks = sinks_of([[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]], "tvaa")
    assert list(sinks.tokens) == [0, 1, 2]
    assert list(sinks.min_layers(2)) == [0, 1]
    assert list(sinks.top_per_modality(1)) == [2, 1]
    assert list(sinks.in_layer(1)) == [0, 1]
    assert sinks.per_layer()["video"].tolist() == [0, 1, 1]
    assert sinks.to_frame()["layers"].tolist() == [3, 2, 1]
    with pytest.raises(PositionError, match="pass 1 or more"):
        sinks.top(0.5)


def test_a_random_model_has_no_sink_dimensions_and_so_no_sinks():
    model = tiny_model(n_layers=6)
    dims = find_sink_dims(model)
    assert len(dims) == 0
    _, cache = model.run_with_cache(model.prepare(tiny_clip(2.0), "hear ?"), names_filter=["resid_pre"])
    assert len(find_sinks(cache, dims).tokens) == 0


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("clip_seed", [0, 5, 9])
def test_planted_dimensions_and_positions_are_found_exactly(seed, clip_seed):
    model, truth = planted_model(seed)
    assert tuple(find_sink_dims(model)) == truth.sink_dims
    inputs = model.prepare(ball_and_bell(4.0, fps=2.0, seed=clip_seed), "what do you hear ?")
    _, cache = model.run_with_cache(inputs, names_filter=["embed", "resid_pre"])
    embed = cache["hook_embed"][0]
    step = (embed[:, truth.flag_dim] - truth.threshold).clamp(0, 0.011)
    certain = (step == 0) | (step >= 0.0105)  # within the step of 0.01 the plant is half written
    found = find_sinks(cache, truth.sink_dims).is_sink[truth.first_layer :]
    assert torch.equal(found.all(0)[certain], planted_sinks(truth, embed)[certain])
    assert torch.equal(found.any(0)[certain], planted_sinks(truth, embed)[certain])


def test_streamed_energy_equals_stored():
    model = tiny_model(n_layers=4)
    inputs = model.prepare(tiny_clip(3.0), "hear ?")
    _, stored = model.run_with_cache(inputs, names_filter=["resid_pre"])
    _, streamed = model.run_with_cache(inputs, names_filter=[], reductions=[sink_energy([5, 9])])
    torch.testing.assert_close(find_sinks(stored, [5, 9]).energy, find_sinks(streamed, [5, 9]).energy)


def test_errors_say_what_to_do():
    model = tiny_model()
    inputs = model.prepare(tiny_clip(2.0), "hear ?")
    _, cache = model.run_with_cache(inputs, names_filter=["resid_pre"])
    with pytest.raises(PositionError, match="the residual stream has 64"):
        find_sinks(cache, [64])
    with pytest.raises(MissingActivationError, match="sink_energy"):
        find_sinks(AVCache({}, model, cache.token_maps), [1])
