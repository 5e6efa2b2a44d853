"""Encoders read and edited inside their blocks."""

import sys

import pytest
import torch

from avlens.encoders.hooked import InBlocks
from avlens.hooks import key_positions, query_positions
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, largest_difference

FAMILIES = ("qwen2_5_omni", "qwen3_omni", "video_salmonn2_plus", "video_salmonn_o1", "gemma4")
MODELS = {name: tiny_model(name) for name in FAMILIES}
CLIP = tiny_clip(2.6, size=(168, 140), seed=4)

every_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))


def modules_of(model):
    """The stock attention modules by the names of their patterns."""
    return {
        f"{encoder}.blocks.{i}.attn.hook_pattern": getattr(one, "module", one)
        for encoder, attention in model.stock.encoder_attention.items()
        for i, one in enumerate(attention)
    }


@every_model
def test_patterns_are_those_of_the_stock_towers_eager_attention(model, monkeypatch):
    """What transformers' own eager function returns, or the module itself where it has no other way to attend."""
    inputs = model.prepare(CLIP, "what ?")
    names = {id(module): name for name, module in modules_of(model).items()}
    assert set(names.values()) == {n for n in model.hook_dict if ".blocks." in n and n.endswith("hook_pattern")}
    _, cache = model.run_with_cache(inputs, list(names.values()))
    seen = {name: [] for name in cache}
    for module in modules_of(model).values():
        home = sys.modules[type(module).__module__]
        stock = home.eager_attention_forward
        monkeypatch.setattr(module.config, "_attn_implementation_internal", "eager")

        def spy(module, *args, _stock=stock, **kwargs):
            out, pattern = _stock(module, *args, **kwargs)
            if id(module) in names:
                seen[names[id(module)]].append(pattern)
            return out, pattern

        if not hasattr(stock, "spies"):
            spy.spies = True
            monkeypatch.setattr(home, "eager_attention_forward", spy)
    blocked = [one.module for attention in model.stock.encoder_attention.values() for one in attention
               if isinstance(one, InBlocks)]  # fmt: skip
    handles = [
        module.register_forward_hook(
            lambda module, args, out: seen[names[id(module)]].append(out[1][0].transpose(0, 1))
        )
        for module in blocked
    ]
    model.forget_encodings()
    model(inputs)
    model.forget_encodings()
    for handle in handles:
        handle.remove()
    for name, wanted in seen.items():
        got = cache.calls(name)
        assert len(got) == len(wanted) > 0
        for one, other in zip(got, wanted, strict=True):
            assert_equal(one, other)
            assert_equal(one.sum(-1), torch.ones(one.shape[:3]))


@every_model
def test_listening_at_one_pattern_leaves_the_other_blocks_and_the_settings_alone(model):
    def settings():
        return {name: module.config._attn_implementation for name, module in modules_of(model).items()}

    def fail(x, hook):
        raise ValueError("a hook of mine")

    inputs, usual = model.prepare(CLIP, "what ?"), settings()
    idle = model(inputs)
    for name in ("vision.blocks.0.attn.hook_pattern", "audio.blocks.0.attn.hook_pattern"):
        assert_equal(model.run_with_hooks(inputs, [(name, lambda x, hook: x)]), idle)
        with pytest.raises(ValueError, match="a hook of mine"):
            model.run_with_hooks(inputs, [(name, fail)])
        assert settings() == usual and torch.equal(model(inputs), idle)


@every_model
def test_an_edited_pattern_is_what_the_values_are_summed_by(model):
    """A pattern of zeros leaves the bias of the output alone, the same at each row."""
    inputs = model.prepare(CLIP, "what ?")
    idle, modules = model(inputs), modules_of(model)
    for name in modules:
        uniform = model.run_with_hooks(inputs, [(name, lambda x, hook: torch.full_like(x, 1 / x.shape[-1]))])
        assert largest_difference(uniform, idle) > 1e-5, name
    kept, name = [], "vision.blocks.0.attn.hook_pattern"
    handle = modules[name].register_forward_hook(lambda module, args, out: kept.append(out))
    model.run_with_hooks(inputs, [(name, lambda x, hook: torch.zeros_like(x))])
    handle.remove()
    rows = (kept[0][0] if isinstance(kept[0], tuple) else kept[0]).flatten(0, -2)
    assert len(rows) > 1 and torch.equal(rows, rows[:1].expand_as(rows))


@every_model
@pytest.mark.parametrize("encoder", ["vision", "audio"])
def test_a_pattern_tells_which_rows_of_the_stream_it_is_between(model, encoder):
    """After a change at one row, the rows and columns of the next pattern that move are those said to be that row's."""
    inputs, moved, places = model.prepare(CLIP, "what ?"), [], []
    name, stream = f"{encoder}.blocks.1.attn.hook_pattern", f"{encoder}.blocks.0.hook_resid_post"
    _, cache = model.run_with_cache(inputs, [name, stream])
    n_rows = cache[stream].shape[1]

    def look(x, hook):
        places.append((query_positions(hook, x, dim=2), key_positions(hook, x)))
        moved.append(x)

    for row in (5, 7, n_rows // 2, n_rows - 1):
        moved.clear(), places.clear()

        def bump(x, hook, row=row):
            assert query_positions(hook, x).tolist() == [list(range(n_rows))]
            out = x.clone()
            out[:, row] += torch.randn(x.shape[-1])
            return out

        model.run_with_hooks(inputs, [(stream, bump), (name, look)])
        told = torch.cat([query.flatten() for query, _ in places])
        assert sorted(told[told >= 0].tolist()) == list(range(n_rows))
        for before, after, (query, key) in zip(cache.calls(name), moved, places, strict=True):
            seen = (before.amin(1) > 0) & (query >= 0)[:, :, None] & (key >= 0)[:, None]
            # Softmax spreads a changed key's score over its row as one factor, which is taken out.
            ratio = (after / before).log().masked_fill(~seen[:, None], torch.nan)
            off = (ratio - ratio.nanmedian(-1, keepdim=True).values).abs() > 1e-4
            changed = off.any(1) & seen
            for group, marks in enumerate(changed):
                rows = query[group][marks.sum(1) > 0.5 * seen[group].sum(1)]
                columns = key[group][marks.sum(0) > 0.5 * seen[group].sum(0)]
                assert rows.tolist() == [row] * int((query[group] == row).sum())
                assert columns.tolist() == [row] * int((key[group] == row).sum())
