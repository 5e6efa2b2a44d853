import pytest
import torch

from avlens.analyses.massive_activations import massive_activations
from avlens.cache import AVCache
from avlens.errors import MissingActivationError, PositionError
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality, Segment, TokenMap
from avlens.views import plot


def cache_of(streams, modality=Modality.TEXT):
    n = streams[0].shape[0]
    tokens = TokenMap.of(torch.arange(n), [f"w{i}" for i in range(n)], modality, Segment.QUESTION)
    held = {f"blocks.{i}.hook_resid_pre": one[None] for i, one in enumerate(streams)}
    return AVCache(held, None, [tokens])


def test_the_largest_are_found_with_their_dimension_token_and_median():
    # |h| of layer 0: 0 1 2 / 3 4 50, median of the six numbers (the lower middle one): 2
    first = torch.tensor([[0.0, -1.0, 2.0], [3.0, 4.0, -50.0]])
    found = massive_activations(cache_of([first, torch.zeros(2, 3)]), k=2)
    assert (
        found.size[0].tolist() == [50, 4] and found.dims[0].tolist() == [2, 1] and found.positions[0].tolist() == [1, 1]
    )
    assert found.median.tolist() == [2, 0] and found.ratio[0].tolist() == [25, 2] and found.ratio[1].isnan().all()
    row = found.to_frame().loc[(0, 1)]
    assert (row["size"], row["dim"], row["position"], row["label"], row["median"]) == (50, 2, 1, "w1", 2)
    assert massive_activations(cache_of([first]), k=99).size.shape == (1, 6)


def test_what_was_planted_is_found_in_a_model():
    model = tiny_model(n_layers=3)
    inputs = model.prepare(tiny_clip(2.0), "what ?")
    at = int(inputs.tokens.video.positions[5])

    def plant(resid, hook):
        resid = resid.clone()
        resid[:, at, 7] = 1e4
        return resid

    with model.hooks([("blocks.1.hook_resid_pre", plant)]):
        _, cache = model.run_with_cache(inputs, names_filter=["resid_pre"])
    found = massive_activations(cache, k=1)
    assert found.positions[1:, 0].tolist() == [at, at] and found.dims[1:, 0].tolist() == [7, 7]
    assert float(found.ratio[1, 0]) > 1000 > float(found.ratio[0, 0])
    line = plot(found).data[0]
    assert line.y[1] == 1e4 and f"@{at}, dimension 7" in line.text[1] and line.marker.color[1] == "#0072B2"


def test_nothing_to_look_at_is_refused():
    with pytest.raises(MissingActivationError, match="names_filter"):
        massive_activations(AVCache({}, None, [TokenMap.of(torch.arange(1), ["a"], Modality.TEXT, Segment.QUESTION)]))
    with pytest.raises(PositionError, match="1 or more"):
        massive_activations(cache_of([torch.ones(2, 3)]), k=0)
