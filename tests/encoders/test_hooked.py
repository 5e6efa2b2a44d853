"""Encoders read and edited inside their blocks."""

import sys

import pytest
import torch

from avlens.hooks import key_positions, query_positions
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, largest_difference

MODELS = {
    "qwen2_5_omni": tiny_model("qwen2_5_omni"), "qwen3_omni": tiny_model("qwen3_omni"),
    "video_salmonn2_plus": tiny_model("video_salmonn2_plus"), "video_salmonn_o1": tiny_model("video_salmonn_o1"),
}  # fmt: skip
CLIP = tiny_clip(2.6, size=(168, 140), seed=4)

every_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))


def patterns(model):
    return [name for name in model.hook_dict if ".blocks." in name and name.endswith("hook_pattern")]


@every_model
def test_patterns_are_those_of_the_stock_towers_eager_attention(model, monkeypatch):
    """What transformers' own eager function returns, module by module."""
    inputs = model.prepare(CLIP, "what ?")
    _, cache = model.run_with_cache(inputs, patterns(model))
    modules = {id(module): f"{encoder}.blocks.{i}.attn.hook_pattern"
               for encoder, attention in model.stock.encoder_attention.items() for i, module in enumerate(attention)}  # fmt: skip
    assert set(modules.values()) == set(cache.keys())
    seen = {name: [] for name in cache}
    for module in (module for attention in model.stock.encoder_attention.values() for module in attention):
        home = sys.modules[type(module).__module__]
        stock = home.eager_attention_forward
        if getattr(stock, "spies", False):
            continue

        def spy(module, *args, _stock=stock, **kwargs):
            out, pattern = _stock(module, *args, **kwargs)
            if id(module) in modules:
                seen[modules[id(module)]].append(pattern)
            return out, pattern

        spy.spies = True
        monkeypatch.setattr(home, "eager_attention_forward", spy)
    for attention in model.stock.encoder_attention.values():
        for module in attention:
            monkeypatch.setattr(module.config, "_attn_implementation_internal", "eager")
    model.forget_encodings()
    model(inputs)
    model.forget_encodings()
    for name, wanted in seen.items():
        got = cache.calls(name)
        assert len(got) == len(wanted) > 0
        for one, other in zip(got, wanted, strict=True):
            assert_equal(one, other)
            assert_equal(one.sum(-1), torch.ones(one.shape[:3]))


@every_model
def test_listening_at_one_pattern_leaves_the_other_blocks_and_the_settings_alone(model):
    inputs = model.prepare(CLIP, "what ?")
    usual = {id(m): m.config._attn_implementation for one in model.stock.encoder_attention.values() for m in one}
    idle, name = model(inputs), patterns(model)[0]

    def fail(x, hook):
        raise ValueError("a hook of mine")

    assert_equal(model.run_with_hooks(inputs, [(name, lambda x, hook: x)]), idle)
    with pytest.raises(ValueError, match="a hook of mine"):
        model.run_with_hooks(inputs, [(name, fail)])
    assert usual == {
        id(m): m.config._attn_implementation for one in model.stock.encoder_attention.values() for m in one
    }
    assert torch.equal(model(inputs), idle)


@every_model
def test_an_edited_pattern_is_what_the_values_are_summed_by(model):
    """A pattern of zeros makes what the block reads no matter: only its output bias is left."""
    inputs = model.prepare(CLIP, "what ?")
    idle = model(inputs)
    for name in patterns(model):
        nothing, uniform = (
            model.run_with_hooks(inputs, [(name, lambda x, hook, share=share: torch.full_like(x, share / x.shape[-1]))])
            for share in (0.0, 1.0)
        )
        assert min(largest_difference(one, idle) for one in (nothing, uniform)) > 1e-5, name
    module = model.stock.encoder_attention["vision"][0]
    kept = []
    handle = module.register_forward_hook(
        lambda module, args, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    model.run_with_hooks(inputs, [("vision.blocks.0.attn.hook_pattern", lambda x, hook: torch.zeros_like(x))])
    handle.remove()
    bias = next(last for name, last in module.named_children() if name in ("proj", "out_proj")).bias
    assert_equal(kept[0], bias.expand_as(kept[0]))


@every_model
@pytest.mark.parametrize("encoder", ["vision", "audio"])
def test_a_pattern_tells_which_rows_of_the_stream_it_is_between(model, encoder):
    """After a change at one row, the rows and columns of the next pattern that move are those said to be that row's."""
    inputs, moved = model.prepare(CLIP, "what ?"), []
    name = f"{encoder}.blocks.1.attn.hook_pattern"
    _, cache = model.run_with_cache(inputs, name)
    plain, places = cache.calls(name), []
    n_rows = sum(one.shape[0] * one.shape[2] for one in plain)

    def look(x, hook):
        places.append((query_positions(hook, x, dim=2), key_positions(hook, x)))
        moved.append(x)

    for row in (0, 7, n_rows // 2, n_rows - 1):
        moved.clear(), places.clear()

        def bump(x, hook, row=row):
            assert query_positions(hook, x).tolist() == [list(range(n_rows))]
            out = x.clone()
            out[:, row] += torch.randn(x.shape[-1])
            return out

        model.run_with_hooks(inputs, [(f"{encoder}.blocks.0.hook_resid_post", bump), (name, look)])
        assert sorted(torch.cat([query.flatten() for query, _ in places]).tolist()) == list(range(n_rows))
        for before, after, (query, key) in zip(plain, moved, places, strict=True):
            # Softmax spreads a changed key's score over its row as one factor, which is taken out.
            ratio = (after / before).log()
            changed = ((ratio - ratio.median(-1, keepdim=True).values).abs() > 1e-4).any(1).float()
            for group in range(len(before)):
                rows, columns = (query[group][changed[group].mean(1) > 0.5], key[group][changed[group].mean(0) > 0.5])
                here = [row] if (query[group] == row).any() else []
                assert (rows.tolist(), columns.tolist()) == (here, here)
