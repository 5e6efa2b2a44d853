import math

import pytest
import torch

from avlens.decoding import AVCD
from avlens.decoding.avcd import Masked, combine, dominance, entropy, members
from avlens.errors import DecodingError
from avlens.interventions import knockout
from tests.helpers import assert_equal, scores_of


def test_with_an_infinite_gate_it_is_vanilla_decoding(model, prompt, two):
    method = AVCD(entropy=math.inf)
    stock = model.stock.whole.generate(**prompt.hf_kwargs(), max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(prompt, 8, decoding=method).tokens, stock[:, prompt.shape[1] :])
    assert torch.equal(model.generate(two, 8, decoding=method).tokens, model.generate(two, 8).tokens)


def masks_of(cache, tokens, share):
    """Which modality stays, and what the masked runs lack, by loops over the last row's attention."""
    n_layers, n = len(cache.layers("pattern")) - 1, len(tokens)
    rows = [cache["pattern", layer][0, :, -1].mean(0) for layer in range(n_layers)]
    a = [sum(float(row[i]) for row in rows) / n_layers for i in range(n)]
    sets = [[i for i in range(n) if i in kind] for kind in (tokens.video, tokens.audio)]
    sets.append([i for i in range(n) if i not in sets[0] and i not in sets[1]])
    scores = [sum(a[i] for i in group) / len(group) for group in sets]
    stays = scores.index(max(scores))
    cut = float(torch.tensor(a).quantile(share))
    return stays, [[i for i in group if a[i] > cut] for k, group in enumerate(sets) if k != stays]


def without(model, inputs, masked, axis):
    """Logits of a run in which keys, or queries, are removed from every pattern but the last layer's."""

    def edit(pattern, hook):
        out = pattern.clone()
        if axis == "query":
            out[:, :, masked] = 0
            return out
        out[..., masked] = 0
        return out / (out.sum(-1, keepdim=True) + 1e-12)

    hooks = [(f"blocks.{i}.attn.hook_pattern", edit) for i in range(model.cfg.n_layers - 1)]
    return model.run_with_hooks(inputs, hooks)[0, -1]


@pytest.mark.parametrize(
    "method",
    [
        AVCD(entropy=0.0),
        AVCD(alpha=2.5, beta=0.01, entropy=0.0, share=0.8),
        AVCD(entropy=0.0, axis="query", fill=-1e-4),
    ],
)
def test_each_step_is_the_formula_by_four_whole_passes(model, prompt, method):
    out, scores = scores_of(model, prompt, 3, method)
    for step in range(3):
        longer = prompt.with_answer(out.tokens[0, :step])
        logits, cache = model.run_with_cache(longer, names_filter=["pattern"])
        original = logits[0, -1]
        stays, (m, n) = masks_of(cache, longer.tokens, method.share)
        assert out.records["dominant"][0, step] == stays
        without_m, without_n, neither = (without(model, longer, mask, method.axis) for mask in (m, n, m + n))
        wanted = (2 + 2 * method.alpha) * original + without_m + without_n - 2 * method.alpha * neither
        wanted[original < original.max() + math.log(method.beta)] = method.fill
        assert_equal(scores[0, step], wanted, 1e-4)
        assert out.records["entropy"][0, step].item() == pytest.approx(float(entropy(original)), abs=1e-4)


def test_a_batch_is_its_rows_also_where_one_row_is_decided(model, two):
    _, free = scores_of(model, two, 1, AVCD(entropy=math.inf))
    between = float(entropy(free[:, 0]).mean())
    for gate in (0.0, between):
        both, scores = scores_of(model, two, 3, AVCD(entropy=gate))
        for row, one in enumerate(two):
            alone, own = scores_of(model, one, 3, AVCD(entropy=gate))
            assert torch.equal(both.tokens[row], alone.tokens[0])
            assert torch.equal(both.records["dominant"][row], alone.records["dominant"][0])
            assert_equal(scores[row], own[0], 1e-4)
    assert sorted((both.records["dominant"][:, 0] >= 0).tolist()) == [False, True]


def test_a_users_hooks_do_not_see_the_second_pass(model, prompt):
    seen = []
    blocked = knockout(prompt.tokens.last | prompt.tokens.generated, prompt.tokens.audio)
    watch = [("blocks.1.hook_resid_pre", lambda x, hook: seen.append(tuple(x.shape[:2])))]
    out = model.generate(
        prompt, 3, decoding=AVCD(entropy=0.0), fwd_hooks=blocked + watch, names_filter=["resid_pre"], eos_token_id=None
    )
    n = prompt.shape[1]
    assert seen == [(1, n), (1, 1), (1, 1)]
    assert out.cache["resid_pre", 1].shape[:2] == (1, n + 2)
    gated = model.generate(prompt, 6, decoding=AVCD(entropy=math.inf), fwd_hooks=blocked)
    assert torch.equal(gated.tokens, model.generate(prompt, 6, fwd_hooks=blocked).tokens)


def test_sampling_is_seeded(model, prompt):
    options = {"do_sample": True, "temperature": 4.0, "seed": 5, "decoding": AVCD()}
    assert torch.equal(model.generate(prompt, 4, **options).tokens, model.generate(prompt, 4, **options).tokens)


def test_entropy_dominance_and_the_mix_by_hand():
    assert float(entropy(torch.zeros(4))) == pytest.approx(math.log(4))
    assert float(entropy(torch.tensor([0.0, -math.inf]))) == 0
    groups = torch.tensor([[True, True, False, False], [False, False, True, False], [False, False, False, True]])
    assert dominance(torch.tensor([0.1, 0.3, 0.4, 0.2]), groups).tolist() == pytest.approx([0.2, 0.4, 0.2])
    parts = [torch.tensor([x]) for x in (1.0, 2.0, 3.0, 4.0)]
    assert combine(*parts, 0.5).item() == pytest.approx(3 * 1 + 2 + 3 - 4)


def test_every_position_belongs_to_one_group(prompt):
    groups = members(prompt.tokens, len(prompt.tokens) + 3)
    assert (groups.sum(0) == 1).all() and groups[2, -3:].all()
    assert groups[0].sum() == len(prompt.tokens.video) and groups[1].sum() == len(prompt.tokens.audio)


def test_a_masked_pattern_sums_to_one_or_reads_nothing(model, prompt):
    pattern = model.run_with_cache(prompt, names_filter=["pattern"])[1]["pattern", 1]
    hook = model.blocks[1].attn.hook_pattern
    masked = torch.zeros(1, pattern.shape[-1], dtype=torch.bool)
    masked[0, [0, 5, 9]] = True
    edited = Masked(masked, "key")(pattern, hook)
    sums = edited.sum(-1)
    assert_equal(sums[:, :, 1:], torch.ones_like(sums[:, :, 1:]))
    assert (sums[:, :, 0] == 0).all() and (edited[..., masked[0]] == 0).all()


def test_what_cannot_run_is_refused(model, prompt, clip):
    for method, says in [
        (AVCD(alpha=-1.0), "alpha >= 0"),
        (AVCD(beta=2.0), "beta and share"),
        (AVCD(share=-1.0), "share"),
    ]:
        with pytest.raises(DecodingError, match=says):
            model.generate(prompt, 2, decoding=method)
    with pytest.raises(DecodingError, match="Pass clips with both"):
        model.generate(model.prepare(clip.without_audio(), "what ?"), 2, decoding=AVCD())
