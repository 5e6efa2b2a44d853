import pytest
import torch

from avlens import cost
from avlens.errors import TooLargeError
from avlens.testing import tiny_clip, tiny_model

MODEL = tiny_model()
INPUTS = MODEL.prepare(tiny_clip(1.0), "what do you hear ?")


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen3_omni", "video_salmonn_o1"])
def test_the_estimate_of_a_cache_is_what_it_takes(family):
    model = tiny_model(family)
    inputs = model.prepare(tiny_clip(1.0), "what do you hear ?")
    _, cache = model.run_with_cache(inputs, names_filter=lambda name: name.split(".")[0] in ("blocks", "hook_embed"))
    for name, tensor in cache.items():
        estimate = cost.kept_bytes(model.cfg, [name], *inputs.shape)
        assert estimate == tensor.numel() * model.cfg.dtype.itemsize, name
    assert len(cache) > 60


def test_what_cannot_fit_is_refused_before_it_runs_with_what_would_fit(monkeypatch):
    layer = cost.kept_bytes(MODEL.cfg, ["blocks.0.attn.hook_pattern"], *INPUTS.shape)
    monkeypatch.setattr(cost, "free_bytes", lambda device: 2 * layer)
    ran = []
    with pytest.raises(TooLargeError, match="2 of its 3 layers would fit.*reductions="):
        MODEL.run_with_cache(INPUTS, "pattern", fwd_hooks=[("hook_embed", lambda x, hook: ran.append(1))])
    assert not ran
    _, cache = MODEL.run_with_cache(INPUTS, names_filter=[f"blocks.{i}.attn.hook_pattern" for i in range(2)])
    assert cache.layers("pattern") == [0, 1]


def test_free_memory_is_known_here_and_none_elsewhere():
    free = cost.free_bytes(torch.device("cpu"))
    assert free is None or free > 2**20
    assert cost.free_bytes(torch.device("meta")) is None


def test_operations_of_a_block_are_those_of_its_matrices():
    block, cfg, rows = MODEL.blocks[0], MODEL.cfg, torch.arange(7)
    linears = [
        *(getattr(block.attn, f"{one}_proj") for one in "qkvo"),
        block.mlp.gate_proj,
        block.mlp.up_proj,
        block.mlp.down_proj,
    ]
    by_hand = 7 * sum(2 * linear.weight.numel() for linear in linears) + 4 * cfg.n_heads * cfg.d_head * (
        1 + 2 + 3 + 4 + 5 + 6 + 7
    )
    assert cost.block_operations(cfg, rows, rows) == by_hand
    keys = 2 * (block.attn.k_proj.weight.numel() + block.attn.v_proj.weight.numel())
    assert cost.block_operations(cfg, rows, rows[:0]) == 7 * keys
