"""What is counted is what torch multiplies, also in models of other widths."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from avlens import cost
from avlens.engine import sweep
from avlens.errors import ExperimentError
from avlens.experiments.ledger import QWEN2_5_OMNI, Device, Ledger, Product, Widths, Work, measure
from avlens.interventions import discard, knockout, patch
from avlens.testing import tiny_clip, tiny_model

THIN = {"n_layers": 3, "d_model": 40, "n_heads": 2, "n_key_value_heads": 1, "d_head": 12, "d_mlp": 56}
WIDE = {"n_layers": 3, "d_model": 96, "n_heads": 6, "n_key_value_heads": 2, "d_head": 16, "d_mlp": 208, "d_encoder": 48}


def plain(model, inputs):
    model(inputs, logits_at=inputs.tokens.last)


def swept(model, inputs):
    tokens = inputs.tokens
    _, cache = model.run_with_cache(inputs, names_filter=["resid_pre"], logits_at=tokens.last)
    some = tokens.random_like(tokens.video, seed=0, within=tokens.media)
    edits = {f"cut {i}": knockout(tokens.last, tokens.audio, layers=[i]) for i in range(3)} | {
        "patched": patch(cache, some), "left": discard(tokens.video, layer=1),
    }  # fmt: skip
    sweep(model, inputs, edits, logits_at=tokens.last)


def written(model, inputs):
    model.generate(inputs, 4, min_new_tokens=4)


def counted(sizes, work):
    model = tiny_model(**sizes)
    inputs = model.prepare(tiny_clip(2.0), "what do you hear ?")
    with Ledger() as ledger:
        work(model, inputs)
    return ledger.work(), Widths.of(model), model, inputs


@pytest.mark.parametrize("work", [plain, swept, written])
def test_a_thin_model_tells_what_a_wide_one_multiplies(work):
    thin, own, *_ = counted(THIN, work)
    wide, other, *_ = counted(WIDE, work)
    assert thin.widened(own, other).products == pytest.approx(wide.products)
    assert thin.operations < wide.operations / 2


def test_counts_are_those_of_torch():
    model = tiny_model(**WIDE, attn="eager")
    inputs = model.prepare(tiny_clip(2.0), "what do you hear ?")
    with Ledger() as ledger, FlopCounterMode(display=False) as torchs:
        swept(model, inputs)
    work = ledger.work()
    fused = sum(p.operations * n for p, n in work.products.items() if p.where != "decoder" and not p.into)
    assert fused > 0  # The encoders' attention: torch's counter does not know the fused kernel of the CPU.
    assert work.operations - fused == torchs.get_total_flops()


def test_counts_are_those_of_the_formula_of_a_block():
    work, _, model, inputs = counted(WIDE, plain)
    cfg, rows, last = model.cfg, torch.arange(len(inputs.tokens)), inputs.tokens.last.positions
    blocks = [cost.block_operations(cfg, rows, leave) for leave in (rows, rows, last)]
    # The kernel is given pairs that are masked too: a query counts all keys, not those up to itself.
    masked = (
        4 * cfg.n_heads * cfg.d_head * sum(len(rows) * len(own) - float((own + 1).sum()) for own in (rows, rows, last))
    )
    assert work.operations_in("decoder") == sum(blocks) + masked + 2 * cfg.d_model * cfg.d_vocab


def test_seconds_by_hand():
    device = Device("x", peak=100.0, bandwidth=10.0, share=0.5, host=1.0)
    long, short, tiny = Product("decoder", 1000, 2, 3), Product("decoder", 1, 20, 30), Product("decoder", 1, 1, 1)
    assert Work({long: 1}).seconds(device) == 2 * 1000 * 6 / 50
    assert Work({short: 2}).seconds(device) == 2 * (600 * 2 / 5)
    assert Work({tiny: 3}).seconds(device) == 3
    assert (Work({long: 1}) + Work({long: 2, tiny: 1})).products == {long: 3, tiny: 1}


def test_what_a_machine_reaches_is_measured():
    model = tiny_model(**WIDE)
    inputs = model.prepare(tiny_clip(2.0), "what do you hear ?")
    found = measure(model, inputs, Device("this one", peak=1e12, bandwidth=1e12), steps=2, repeats=1)
    assert 0 < found.share < 1 and 0 <= found.host < 0.1 and found.peak == 1e12


def test_what_cannot_be_told_is_refused():
    work, own, *_ = counted(THIN, plain)
    with pytest.raises(ExperimentError, match="counted in 3 layers, the other model has 28"):
        work.widened(own, QWEN2_5_OMNI["7B"])
    with pytest.raises(ExperimentError, match="the width 40 stands for 3584 and for 18944"):
        work.widened(replace(own, d_mlp=40), replace(QWEN2_5_OMNI["7B"], n_layers=3))
    with pytest.raises(ExperimentError, match="other encoders"):
        Widths.of(tiny_model("video_salmonn_o1"))
