import math

import pytest
import torch

from avlens.decoding import VCD
from avlens.decoding.plausible import keep_plausible
from avlens.decoding.vcd import contrast, noised
from avlens.errors import DecodingError
from avlens.inputs import AVInputs
from avlens.interventions import knockout
from avlens.media.clip import signal_kept
from tests.helpers import assert_equal, scores_of


def test_without_alpha_it_is_vanilla_decoding(model, prompt, two):
    stock = model.stock.whole.generate(**prompt.hf_kwargs(), max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(prompt, 8, decoding=VCD(alpha=0.0)).tokens, stock[:, prompt.shape[1] :])
    assert torch.equal(model.generate(two, 8, decoding=VCD(alpha=0.0)).tokens, model.generate(two, 8).tokens)


def slowly(model, clean, distorted, written, alpha, beta):
    l, other = (model(one.with_answer(written))[0, -1] for one in (clean, distorted))  # noqa: E741
    mixed = torch.tensor([(1 + alpha) * float(x) - alpha * float(y) for x, y in zip(l, other, strict=True)])
    return mixed.masked_fill(l < l.max() + math.log(beta), -math.inf)


@pytest.mark.parametrize("by_hand", [False, True])
def test_each_step_is_the_formula_by_two_whole_passes(model, prompt, clip, by_hand):
    other = model.prepare(clip.noised(700), "describe the clip .") if by_hand else noised(prompt, 500)
    method = VCD(alpha=2.0, beta=0.05, distorted=other if by_hand else None)
    out, scores = scores_of(model, prompt, 3, method)
    for step in range(3):
        assert_equal(scores[0, step], slowly(model, prompt, other, out.tokens[0, :step], 2.0, 0.05))
    assert scores.isneginf().any()
    plain = model.generate(prompt, 3, eos_token_id=None)
    assert float((scores[0, 0] - model(prompt)[0, -1]).nan_to_num(neginf=0).abs().max()) > 1e-3 or not torch.equal(
        plain.tokens, out.tokens
    )


def test_a_batch_is_its_rows_and_sampling_is_seeded(model, two):
    both, scores = scores_of(model, two, 4, VCD())
    for row, one in enumerate(two):
        alone, own = scores_of(model, one, 4, VCD())
        assert torch.equal(both.tokens[row], alone.tokens[0])
        assert_equal(scores[row], own[0])
    options = {"do_sample": True, "temperature": 1.3, "seed": 5, "decoding": VCD()}
    assert torch.equal(model.generate(two, 6, **options).tokens, model.generate(two, 6, **options).tokens)


def test_a_row_that_ended_does_not_disturb_the_other(model, two):
    free = model.generate(two, 6, decoding=VCD(), eos_token_id=None).tokens
    end = int(free[1, 2])
    early = model.generate(two, 6, decoding=VCD(), eos_token_id=end).tokens
    stop = free[1].tolist().index(end)
    assert early[1, : stop + 1].tolist() == free[1, : stop + 1].tolist()
    if end not in free[0].tolist():
        assert torch.equal(early[0], free[0])


def test_a_users_hooks_act_on_the_original_stream(model, two):
    seen = []
    watch = [(name, lambda x, hook: seen.append((hook.name, len(x)))) for name in ("hook_audio_embed", "hook_embed")]
    model.generate(two, 2, decoding=VCD(), fwd_hooks=watch)
    assert seen == [("hook_audio_embed", 1)] * 2 + [("hook_embed", 2)] * 2
    prompt = two[0]
    blocked = knockout(prompt.tokens.last | prompt.tokens.generated, prompt.tokens.media)
    _, scores = scores_of(model, prompt, 1, VCD(beta=0.0), fwd_hooks=blocked)
    original, other = model.run_with_hooks(prompt, blocked)[0, -1], model(noised(prompt, 500))[0, -1]
    assert_equal(scores[0, 0], 2 * original - other)


def test_the_recorded_run_is_the_original_stream(model, prompt):
    out = model.generate(prompt, 2, decoding=VCD(), names_filter=["resid_pre"], eos_token_id=None)
    alone = model.run_with_cache(prompt, names_filter=["resid_pre"])[1]
    assert_equal(out.cache["resid_pre", 2][:, : prompt.shape[1]], alone["resid_pre", 2])


def test_contrast_and_plausibility_by_hand():
    original, distorted = torch.tensor([2.0, 1.0, -1.0]), torch.tensor([3.0, 0.0, 0.0])
    assert contrast(original, distorted, 0.5).tolist() == [1.5, 1.5, -1.5]
    # log(0.1) = -2.30: below 2 - 2.30 = -0.30 a token is implausible.
    assert keep_plausible(torch.zeros(3), original, 0.1).tolist() == [0, 0, -math.inf]
    assert keep_plausible(torch.zeros(3), original, 0.1, fill=-1e-4)[2] == pytest.approx(-1e-4)
    assert keep_plausible(torch.zeros(3), original, 0.0).tolist() == [0, 0, 0]
    assert keep_plausible(torch.zeros(3), original, 1.0).tolist() == [0, -math.inf, -math.inf]


def test_noise_follows_vcds_schedule_and_keeps_the_layout(prompt):
    kept = 1.0
    for t in range(501):
        kept *= 1 - ((0.5e-2 - 1e-5) / (1 + math.exp(6 - 12 * t / 999)) + 1e-5)
    assert signal_kept(500) == pytest.approx(kept, rel=1e-4) and signal_kept(999) < 0.1 < 0.9999 < signal_kept(0)
    far, near = noised(prompt, 999), noised(prompt, 0, video=False)
    assert far.layouts == prompt.layouts
    for before, noise, little in zip(prompt.prompt.media, far.prompt.media, near.prompt.media, strict=True):
        name = "mel" if "mel" in before.tensors else "pixels"
        assert abs(float(noise.tensors[name].std()) - 1) < 0.1
        assert torch.allclose(before.tensors[name], little.tensors[name], atol=0.05)
        assert torch.equal(before.tensors[name], little.tensors[name]) == (name == "pixels")
    again = noised(AVInputs.batch([prompt, prompt]), 999)
    assert again[0].prompt.media[0].key == again[1].prompt.media[0].key == far.prompt.media[0].key


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (VCD(alpha=-1.0), "alpha >= 0"),
        (VCD(beta=2.0), r"beta in \[0, 1\]"),
        (VCD(step=1000), "from 0 to 999"),
        (VCD(audio=False, video=False), "nothing to distort"),
    ],
)
def test_what_cannot_run_is_refused(model, prompt, method, says):
    with pytest.raises(DecodingError, match=says):
        model.generate(prompt, 2, decoding=method)


def test_distorted_prompts_of_another_layout_are_refused(model, prompt, two):
    with pytest.raises(DecodingError, match=r"such as clip\.noised\(500\)"):
        model.generate(prompt, 2, decoding=VCD(distorted=two))
    with pytest.raises(DecodingError, match=r"VCD\(distorted=...\)"):
        model.generate(model.prepare("what is a drum ?"), 2, decoding=VCD())
