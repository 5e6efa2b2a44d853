"""Law 8: at strength zero every method is vanilla decoding, in whatever way the loop chooses; and what holds for all of them."""

import math

import pytest
import torch

from avlens.decoding import ASD, AVCD, FMD, PAI, VCD
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model

AT_ZERO = [
    ASD(alpha=0.0),
    ASD(strength=0.0),
    VCD(alpha=0.0),
    PAI(alpha=0.0, gamma=1.0),
    AVCD(entropy=math.inf),
    FMD(fork=0),
]
AT_WORK = [ASD(alpha=1.0, sink_dims=(9,)), VCD(), PAI(alpha=0.5, gamma=1.5), AVCD(), FMD(fork=1)]


@pytest.mark.parametrize("method", AT_ZERO, ids=repr)
@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 1.4, "seed": 3}, {"repetition_penalty": 1.7}]
)
def test_at_strength_zero_it_is_vanilla(model, two, method, options):
    vanilla = model.generate(two, 5, **options)
    assert torch.equal(model.generate(two, 5, decoding=method, **options).tokens, vanilla.tokens)


@pytest.mark.parametrize("method", AT_WORK, ids=repr)
def test_it_stops_at_the_end_of_text_and_pads_the_rows_that_ended(model, two, method):
    free = model.generate(two, 5, decoding=method, eos_token_id=None).tokens
    end = int(free[1, 1])
    early = model.generate(two, 5, decoding=method, eos_token_id=end).tokens
    pad = model.stock.whole.generation_config.pad_token_id
    for row in range(2):
        written = free[row].tolist()
        stop = written.index(end) + 1 if end in written else len(written)
        padded = written[:stop] + [pad] * len(written)
        assert early[row].tolist() == padded[: early.shape[1]]


@pytest.mark.parametrize("method", AT_WORK, ids=repr)
def test_it_runs_in_half_precision_on_prompts_of_several_clips(method):
    half = tiny_model(seed=1).to(torch.bfloat16)
    clips = [tiny_clip(1.0, seed=1), "and", tiny_clip(0.6, video=False), tiny_clip(1.0, seed=2).frames[0]]
    inputs = half.prepare(clips, "which is louder ?", order="question_first")
    method = ASD(sink_dims=(0, 1)) if isinstance(method, ASD) else method
    out = half.generate(AVInputs.batch([inputs, half.prepare(tiny_clip(1.0), "what ?")]), 3, decoding=method)
    assert out.tokens.shape[0] == 2 and out.tokens.shape[1] <= 3
