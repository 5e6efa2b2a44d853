import pytest
import torch

from avlens.analyses.attention_mass import REST, attention_by_group
from avlens.errors import PositionError
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal

MODEL = tiny_model()
INPUTS = MODEL.prepare(tiny_clip(1.6), "what do you hear ?")
TOKENS = INPUTS.tokens


def test_masses_are_sums_of_the_pattern():
    sinks = TOKENS.at([0, int(TOKENS.video.positions[1])])
    found = attention_by_group(MODEL, INPUTS, sinks=sinks)
    _, cache = MODEL.run_with_cache(INPUTS, "pattern")
    assert found.queries == ("question", "tail", "last", "generated") and found.keys[-1] == REST
    for layer in found.layers:
        rows = cache["pattern", layer][0][:, TOKENS.question.positions]
        assert_equal(found.of("question", "audio")[layer], rows[..., TOKENS.audio.positions].sum(-1).mean(1))
        of_sink = found.to_sinks[0, found.keys.index("video"), layer]
        assert_equal(of_sink, rows[..., int(sinks.positions[1])].mean(1))
        kept = rows.clone()
        kept[..., sinks.positions] = 0
        share = kept[..., TOKENS.video.positions].sum(-1).mean(1) / kept.sum(-1).mean(1)
        assert_equal(found.of("question", "video", sinks=False)[layer], share)
    assert_equal(found.mass[:3].sum(1), torch.ones(3, *found.mass.shape[2:]))
    assert_equal(found.without_sinks[:3].sum(1), torch.ones(3, *found.mass.shape[2:]))


def test_generated_rows_are_those_that_write_after_the_first_token():
    n = 4
    found = attention_by_group(MODEL, INPUTS, max_new_tokens=n)
    out = MODEL.generate(INPUTS, n, names_filter=["pattern"])
    steps = len(out.tokens[0])
    assert found.n_queries[-2:] == (1, steps - 1)
    for layer in found.layers:
        rows = out.cache["pattern", layer][0][:, len(TOKENS) :]
        assert_equal(found.of("generated", "video")[layer], rows[..., TOKENS.video.positions].sum(-1).mean(1))
        assert_equal(found.of("generated", "generated")[layer], rows[..., len(TOKENS) :].sum(-1).mean(1))
    assert attention_by_group(MODEL, INPUTS).of("generated", "video").isnan().all()


def test_a_group_of_your_own_and_the_rest():
    found = attention_by_group(MODEL, INPUTS, queries={"word": TOKENS.find("hear")}, keys={"audio": TOKENS.audio})
    assert found.keys == ("audio", REST)
    assert_equal(found.mass.sum(1), torch.ones(1, *found.mass.shape[2:]))
    frame = found.to_frame()
    assert len(frame) == 2 * len(found.layers) and frame["without_sinks"].equals(frame["mass"])


def test_groups_that_cannot_be_summed_are_refused():
    with pytest.raises(PositionError, match="'media' shares"):
        attention_by_group(MODEL, INPUTS, keys={"audio": TOKENS.audio, "media": TOKENS.media})
    with pytest.raises(PositionError, match="'none' is empty"):
        attention_by_group(MODEL, INPUTS, keys={"none": TOKENS.at([])})
    with pytest.raises(PositionError, match="'rest' is what is left"):
        attention_by_group(MODEL, INPUTS, keys={"rest": TOKENS.audio})
    with pytest.raises(PositionError, match="no attention of 'last' to 'smell'. Queries are"):
        attention_by_group(MODEL, INPUTS).of("last", "smell")
