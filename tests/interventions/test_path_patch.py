import pytest
import torch

from avlens.errors import BatchError, LayerError, PositionError
from avlens.inputs import AVInputs
from avlens.interventions import discard, knockout, open_path, patch, path_patch
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, in_chunks_of

SITES = ["rot_q", "rot_k", "k", "v", "resid_pre"]


@pytest.fixture(scope="module", params=[10**4, 40], ids=["whole", "chunks"])
def case(request):
    model, clip = tiny_model(n_layers=3), tiny_clip(4.0, size=(56, 56))
    clean, silent = (model.prepare(one, "what do you hear ?") for one in (clip, clip.silenced()))
    with pytest.MonkeyPatch.context() as patched:
        in_chunks_of(request.param, patched)
        caches = [model.run_with_cache(one, names_filter=SITES)[1] for one in (clean, silent)]
        yield model, clean, silent, *caches


def test_reading_what_is_there_changes_nothing(case):
    model, _, silent, _, own = case
    tokens = silent.tokens
    hooks = path_patch(own, tokens.all, tokens.media) + path_patch(own, tokens.last, tokens.question - tokens.last)
    assert_equal(model.run_with_hooks(silent, hooks), model(silent, attn="eager"))
    assert_equal(
        model.run_with_hooks(silent, open_path(own, own, [tokens.audio, tokens.video, tokens.last])), model(silent)
    )


def test_read_by_all_it_is_a_patch_of_keys_and_values(case):
    model, clean, silent, cache, _ = case
    tokens = clean.tokens
    for layers in ("all", [1]):
        edges = model.run_with_hooks(silent, path_patch(cache, tokens.all, tokens.audio, layers=layers))
        whole = patch(cache, tokens.audio, site="k", layers=layers) + patch(
            cache, tokens.audio, site="v", layers=layers
        )
        assert_equal(edges, model.run_with_hooks(silent, whole))


def test_rows_of_the_edge_attend_to_the_mixture_and_no_other_row_does(case):
    """By the definition: attention of the queries over the run's own keys and values, with those of the edge replaced."""
    model, clean, silent, cache, own = case
    tokens, layer, head = clean.tokens, 1, 2
    queries, keys = tokens.question | tokens.last, tokens.audio - tokens.at([int(tokens.audio.positions[0])])
    hooks = path_patch(cache, queries, keys, layers=[layer], heads=[head])
    _, edited = model.run_with_cache(silent, ["z"], fwd_hooks=hooks)
    _, plain = model.run_with_cache(silent, ["z"])
    q, k, v = (own[site, layer][0] for site in ("rot_q", "rot_k", "v"))
    k, v = k.clone(), v.clone()
    for into, site in ((k, "rot_k"), (v, "v")):
        into[keys.positions] = cache[site, layer][0, keys.positions]
    group = head // (q.shape[1] // k.shape[1])
    scores = q[:, head] @ k[:, group].T / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    want = plain["z", layer][0].clone()
    want[queries.positions, head] = (scores.softmax(-1) @ v[:, group])[queries.positions]
    assert_equal(edited["z", layer][0], want)
    assert not torch.allclose(edited["z", layer][0, -1, head], plain["z", layer][0, -1, head], atol=1e-4)


def test_edges_that_share_no_pair_add_up(case):
    model, clean, silent, cache, _ = case
    tokens = clean.tokens
    both = path_patch(cache, tokens.last, tokens.audio) + path_patch(cache, tokens.last, tokens.video)
    assert_equal(
        model.run_with_hooks(silent, both), model.run_with_hooks(silent, path_patch(cache, tokens.last, tokens.media))
    )
    rows = path_patch(cache, tokens.last, tokens.audio) + path_patch(cache, tokens.question - tokens.last, tokens.audio)
    joined = path_patch(cache, tokens.question | tokens.last, tokens.audio)
    assert_equal(model.run_with_hooks(silent, rows), model.run_with_hooks(silent, joined))


def test_what_a_knockout_hides_stays_hidden(case):
    model, clean, silent, cache, _ = case
    tokens = clean.tokens
    cut = knockout(tokens.last, tokens.audio)
    assert_equal(
        model.run_with_hooks(silent, cut + path_patch(cache, tokens.last, tokens.audio)),
        model.run_with_hooks(silent, cut),
    )


def test_units_read_themselves_as_they_are(case):
    model, clean, silent, cache, _ = case
    tokens = clean.tokens
    none = path_patch(cache, tokens.audio, tokens.audio, unit=torch.zeros(len(tokens), dtype=torch.long))
    assert_equal(model.run_with_hooks(silent, none), model(silent))
    across = path_patch(cache, tokens.audio, tokens.audio, unit=torch.arange(len(tokens)), layers=[0])
    _, edited = model.run_with_cache(silent, ["z"], fwd_hooks=across)
    first = int(tokens.audio.positions[0])
    _, plain = model.run_with_cache(silent, ["z"])
    assert_equal(edited["z", 0][0, first], plain["z", 0][0, first])
    assert not torch.allclose(edited["z", 0][0, first + 1], plain["z", 0][0, first + 1], atol=1e-4)


def test_an_open_path_reaches_its_end_and_nobody_else(case):
    model, clean, silent, cache, own = case
    tokens = clean.tokens
    late = tokens.video & tokens.seconds(2.0, 4.0)
    asked = tokens.question
    path = open_path(cache, own, [tokens.audio, late, asked, tokens.last])
    _, run = model.run_with_cache(silent, ["resid_pre"], fwd_hooks=path)
    changed = (run["resid_pre", 2] - own["resid_pre", 2])[0].norm(dim=-1) > 1e-5
    reached = late | asked | tokens.last
    after = tokens.at([p for p in reached if p > int(tokens.audio.positions[0])])
    assert set(changed.nonzero()[:, 0].tolist()) <= set(after) and changed[late.positions].any()
    shut = model.run_with_hooks(silent, open_path(cache, own, [tokens.audio, tokens.at([0]), tokens.last]))
    assert_equal(shut, model(silent))


def test_a_path_of_one_edge_is_that_edge_where_nothing_else_reads_its_end(case):
    model, clean, silent, cache, own = case
    tokens = clean.tokens
    one = model.run_with_hooks(silent, open_path(cache, own, [tokens.audio, tokens.last]))
    assert_equal(one, model.run_with_hooks(silent, path_patch(cache, tokens.last, tokens.audio)))


def test_generated_tokens_read_the_run_as_it_is(case):
    model, clean, silent, cache, _ = case
    tokens = clean.tokens
    hooks = path_patch(cache, tokens.last, tokens.audio)
    written = model.generate(silent, 3, fwd_hooks=hooks, keep_logits=True, eos_token_id=None)
    assert_equal(written.logits[0, 0], model.run_with_hooks(silent, hooks)[0, -1])


def test_refusals(case):
    model, clean, silent, cache, own = case
    tokens = clean.tokens
    hooks = path_patch(cache, tokens.last, tokens.audio)
    with pytest.raises(BatchError, match="whole prompts"):
        model.run_with_hooks(silent, discard(tokens.video, layer=1) + hooks)
    longer = AVInputs.batch([silent, silent.with_answer(torch.tensor([3]))])
    with pytest.raises(BatchError, match="whole prompts"):
        model.run_with_hooks(longer, hooks)
    with pytest.raises(LayerError, match="not of layer 7"):
        path_patch(cache, tokens.last, tokens.audio, layers=[7])
    with pytest.raises(LayerError, match="holds no rot_k"):
        path_patch(model.run_with_cache(clean, ["v"])[1], tokens.last, tokens.audio)
    with pytest.raises(PositionError, match="not yet generated"):
        path_patch(cache, tokens.last | tokens.generated, tokens.audio)
    with pytest.raises(PositionError, match="two groups or more"):
        open_path(cache, own, [tokens.audio, tokens.media])
    assert path_patch(cache, tokens.last, tokens.at([])) == []
