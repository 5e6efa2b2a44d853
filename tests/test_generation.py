from dataclasses import replace

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from avlens import knockout, patch, reweight
from avlens.decoder import KeyValues
from avlens.decoding import PAI
from avlens.errors import BatchError, DecodingError
from avlens.generation import refuse_other_readings
from avlens.hooks import first_query_pos
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality, Segment, TokenMap
from tests.helpers import KINDS, assert_equal, largest_difference, prompt_of

MODEL = tiny_model(seed=1)
INPUTS = prompt_of(MODEL, "video_and_audio")
TOKENS = INPUTS.tokens


def stock_generate(inputs, n, **options):
    """What transformers' own model writes, without the prompt."""
    with torch.no_grad():
        ids = MODEL.stock.whole.generate(**inputs.hf_kwargs(), max_new_tokens=n, **options)
    return ids[:, inputs.shape[1] :]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_equal_the_stock_models(kind):
    inputs = prompt_of(MODEL, kind)
    out = MODEL.generate(inputs, 8, min_new_tokens=8)
    assert torch.equal(out.tokens, stock_generate(inputs, 8, do_sample=False, min_new_tokens=8))
    assert len(out.texts) == len(inputs) and out.texts[0] == MODEL.tokenizer.decode(
        out.tokens[0], skip_special_tokens=True
    )


def test_generation_stops_at_the_end_of_text_and_pads_the_rows_that_ended():
    batch = AVInputs.batch([INPUTS, prompt_of(MODEL, "text"), prompt_of(MODEL, "image")])
    free = MODEL.generate(batch, 6, min_new_tokens=6).tokens
    end = int(free[1, 2])
    early = MODEL.generate(batch, 6, eos_token_id=end)
    assert torch.equal(early.tokens, stock_generate(batch, 6, do_sample=False, eos_token_id=end))
    stop = early.tokens[1].tolist().index(end)
    assert set(early.tokens[1, stop + 1 :].tolist()) <= {MODEL.stock.whole.generation_config.pad_token_id}
    alone = MODEL.generate(batch[1], 6, eos_token_id=end)
    assert alone.tokens[0].tolist() == early.tokens[1, : stop + 1].tolist()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_k": 7}, {"top_p": 0.8}, {"num_return_sequences": 3}])
def test_sampling_with_a_seed_equals_the_stock_models(options):
    before = torch.get_rng_state()
    ours = MODEL.generate(INPUTS, 8, do_sample=True, seed=3, **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    assert torch.equal(ours.tokens, stock_generate(INPUTS, 8, do_sample=True, **options))
    assert not torch.equal(ours.tokens, MODEL.generate(INPUTS, 8, do_sample=True, seed=4, **options).tokens)


@pytest.mark.parametrize("kind", ["video_and_audio", "batch"])
def test_beams_equal_the_stock_models(kind):
    inputs = prompt_of(MODEL, kind)
    ours = MODEL.generate(inputs, 6, num_beams=3)
    assert torch.equal(ours.tokens, stock_generate(inputs, 6, num_beams=3, do_sample=False))


def test_processors_criteria_and_options_are_the_loops_own():
    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            only = torch.full_like(scores, -torch.inf)
            only[:, 300] = 0
            return only

    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= len(TOKENS) + 3)

    out = MODEL.generate(
        INPUTS, 9, logits_processor=LogitsProcessorList([Only()]), stopping_criteria=StoppingCriteriaList([Stop()])
    )
    assert out.tokens.tolist() == [[300, 300, 300]]
    penalised = MODEL.generate(INPUTS, 8, repetition_penalty=1.7, min_new_tokens=8)
    assert torch.equal(
        penalised.tokens, stock_generate(INPUTS, 8, repetition_penalty=1.7, min_new_tokens=8, do_sample=False)
    )


def test_wrong_options_are_refused_with_what_to_do():
    with pytest.raises(
        DecodingError, match="'beams' is no option of generate. Options are those of .*GenerationConfig"
    ):
        MODEL.generate(INPUTS, 3, beams=4)
    with pytest.raises(
        DecodingError, match="does not take return_dict_in_generate=True. It returns a Generation; record"
    ):
        MODEL.generate(INPUTS, 3, return_dict_in_generate=True)
    with pytest.raises(DecodingError, match="does not take guidance_scale=1.5.*with a decoding method"):
        MODEL.generate(INPUTS, 3, guidance_scale=1.5)
    with pytest.raises(DecodingError, match="max_new_tokens is 0. Ask for at least one"):
        MODEL.generate(INPUTS, 0)
    with pytest.raises(BatchError, match=r"2 texts were written. Choose one, such as out.texts\[0\]"):
        _ = MODEL.generate(AVInputs.batch([INPUTS, INPUTS]), 2).text


def test_hooks_see_every_step_at_its_absolute_position():
    seen = []
    hooks = [("blocks.1.hook_resid_pre", lambda x, hook: seen.append((first_query_pos(hook), x.shape[1])))]
    out = MODEL.generate(INPUTS, 4, fwd_hooks=hooks, min_new_tokens=4)
    n = len(TOKENS)
    assert seen == [(0, n), (n, 1), (n + 1, 1), (n + 2, 1)]
    assert torch.equal(out.tokens, MODEL.generate(INPUTS, 4, min_new_tokens=4).tokens)


def teacher_forced(hooks, tokens):
    """Logits of one full run over prompt and answer, with the sets of the prompt made for the longer text."""
    whole = MODEL.stock.whole
    ids = torch.cat([INPUTS.ids, tokens], 1)
    n, longer = len(TOKENS), ids.shape[1]
    prompt = INPUTS.prompt
    # The same prompt with the answer in it: text at the next position ids.
    new = torch.arange(longer - n)
    answer = TokenMap.of(tokens[0], ["."] * len(new), Modality.TEXT, Segment.ANSWER)
    positions = torch.cat([prompt.positions, (prompt.next_position + new).expand(3, -1)], 1)
    joined = replace(prompt, ids=ids[0], tokens=TokenMap.join([prompt.tokens, answer]), positions=positions)
    inputs = AVInputs((joined,), INPUTS.stock_kwargs)
    with torch.no_grad():
        assert_equal(
            MODEL(inputs),
            whole(**INPUTS.hf_kwargs() | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits,
        )
    return MODEL.run_with_hooks(inputs, fwd_hooks=hooks(joined.tokens))[:, n - 1 :]


@pytest.mark.parametrize(
    "edit",
    [
        lambda t, readers: knockout(readers, t.audio),
        lambda t, readers: knockout(readers, t.video, layers=[1], heads=[0, 2]),
        lambda t, readers: reweight(readers, t.audio, 1.5),
        lambda t, readers: reweight(readers, t.video, -0.8, site="pattern"),
    ],
)
def test_an_edit_in_decoding_equals_the_same_edit_in_one_full_run(edit):
    steps = []
    watch = [("ln_final.hook_normalized", lambda x, hook: steps.append(x[:, -1:]))]
    hooks = edit(TOKENS, TOKENS.last | TOKENS.generated)
    out = MODEL.generate(INPUTS, 5, fwd_hooks=hooks + watch, min_new_tokens=5)
    n = len(TOKENS)
    wanted = teacher_forced(lambda t: edit(t, t.at(range(n - 1, len(t)))), out.tokens[:, :4])
    logits = MODEL.unembed(torch.cat(steps, 1) * MODEL.ln_final.w)
    assert_equal(logits, wanted)
    plain = teacher_forced(lambda t: [], out.tokens[:, :4])
    assert largest_difference(wanted[:, 1:], plain[:, 1:]) > 1e-3


def test_a_patched_prompt_is_read_by_every_later_step():
    other = MODEL.prepare(tiny_clip(2.6, size=(84, 56), seed=3).silenced(), "what do you hear ?")
    _, cache = MODEL.run_with_cache(INPUTS, "resid_pre")
    hooks = patch(cache, TOKENS.all - TOKENS.last)
    patched = MODEL.generate(other, 6, fwd_hooks=hooks, min_new_tokens=6)
    assert torch.equal(patched.tokens, MODEL.generate(INPUTS, 6, min_new_tokens=6).tokens)


def test_hooks_act_on_every_beam():
    hooks = knockout(TOKENS.question, TOKENS.audio)
    ours = MODEL.generate(INPUTS, 4, num_beams=2, fwd_hooks=hooks)
    assert ours.tokens.shape[0] == 1
    rows = []
    MODEL.generate(INPUTS, 3, num_beams=2, fwd_hooks=[("hook_embed", lambda x, hook: rows.append(x.shape[0]))])
    assert set(rows) == {2}


def test_what_is_recorded_of_several_answers_belongs_to_their_prompts():
    batch = AVInputs.batch([INPUTS, prompt_of(MODEL, "text")])
    out = MODEL.generate(
        batch, 3, num_return_sequences=2, do_sample=True, seed=0, names_filter="resid_pre", min_new_tokens=3
    )
    assert out.tokens.shape == (4, 3) and len(out.cache.token_maps) == 4
    _, alone = MODEL.run_with_cache(batch[1], "resid_pre")
    n = batch[1].shape[1]
    for row in (2, 3):
        assert_equal(out.cache.row(row)["resid_pre", 1][:, :n], alone["resid_pre", 1])
    with pytest.raises(DecodingError, match="activations of 3 beams cannot be recorded.*then run_with_cache"):
        MODEL.generate(INPUTS, 3, num_beams=3, names_filter="resid_pre")


def test_bare_token_ids_and_stop_strings_are_taken():
    ids = MODEL.to_tokens("what do you hear ?")
    with torch.no_grad():
        stock = MODEL.stock.whole.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(MODEL.generate(ids, 5).tokens, stock[:, ids.shape[1] :])
    free = MODEL.generate(INPUTS, 6, min_new_tokens=6)
    second = MODEL.tokenizer.decode(free.tokens[0, 1])
    assert MODEL.generate(INPUTS, 6, stop_strings=[second]).tokens.shape[1] <= 2


def test_what_was_written_says_what_made_it():
    out = MODEL.generate(INPUTS, 3, do_sample=True, seed=5, temperature=0.5)
    assert out.cache is None and out.records == {}
    assert out.made_by["seed"] == 5 and out.made_by["temperature"] == 0.5 and out.made_by["max_new_tokens"] == 3
    assert out.made_by["prompts"][0]["question"] == "what do you hear ?"
    assert repr(out) == f"Generation({out.text!r})"


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen3_omni", "video_salmonn2_plus", "video_salmonn_o1"])
def test_reading_on_from_a_part_of_a_prompt_is_reading_it(family):
    model = tiny_model(family, seed=1)
    long, short = model.prepare(tiny_clip(2.0), "what do you hear ?"), model.prepare(tiny_clip(1.0), "what ?")
    whole = model.read(long)
    for n in (1, len(long.tokens.media) // 2, len(long.tokens) - 1):
        rest = model.read(long, whole.past.first(n))
        assert_equal(rest.logits, whole.logits)
        for layer in range(model.cfg.n_layers):
            assert_equal(rest.past.layers[layer].values, whole.past.layers[layer].values)
    both, batch = KeyValues(), AVInputs.batch([short, long])
    both.fill([model.read(short).past, whole.past])
    step = torch.tensor([[5], [7]])
    read = model.read(batch)
    assert_equal(model.advance(batch, step, both), model.advance(batch, step, read.past))


def test_a_model_remembers_a_fact_of_its_weights_until_they_change():
    model, asked = tiny_model(seed=1), []

    def find():
        asked.append(1)
        return len(asked)

    assert [model.remember("q", find) for _ in range(3)] == [1, 1, 1] and model.remember("other", find) == 2
    with torch.no_grad():
        model.blocks[0].mlp.W_in.add_(1)
    assert [model.remember("q", find) for _ in range(2)] == [3, 3]
    model.add_hook("blocks.0.hook_resid_pre", lambda x, hook: None)
    assert [model.remember("q", find) for _ in range(2)] == [4, 5]
    model.reset_hooks()
    assert model.remember("q", find) == 3
    model.forget_encodings()
    assert model.remember("q", find) == 6


def test_what_was_read_once_is_written_from_many_times():
    inputs = AVInputs.batch([prompt_of(MODEL, kind) for kind in ("video_and_audio", "text")])
    reading, passes = MODEL.read(inputs), []
    count = [("blocks.0.hook_resid_pre", lambda x, hook: passes.append(x.shape[1]))]
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "seed": 3}, {"num_return_sequences": 2, "num_beams": 2}):
        slow = MODEL.generate(inputs, 4, **options)
        passes.clear()
        assert torch.equal(MODEL.generate(inputs, 4, reading=reading, fwd_hooks=count, **options).tokens, slow.tokens)
        assert set(passes) == {1}  # steps alone
    assert reading.past.seen == inputs.shape[1]
    clip = tiny_clip(1.0)
    see, hear = (MODEL.prepare(clip, f"what do you {verb} ?") for verb in ("see", "hear"))
    assert see.shape == hear.shape
    for model, asked, read in (
        (MODEL, inputs[0], reading),
        (MODEL, see, MODEL.read(hear)),
        (MODEL, see, MODEL.read(MODEL.prepare(clip.silenced(), "what do you see ?"))),
        (tiny_model(seed=2), inputs, reading),
    ):
        with pytest.raises(DecodingError, match=r"of other prompts, or of other weights.*model.read\(inputs\)"):
            model.generate(asked, 4, reading=read)
    for wrong in ("x", reading.past, MODEL.generate(see, 2)):
        with pytest.raises(DecodingError, match="Pass what model.read"):
            refuse_other_readings(wrong, None, None, [])
    with pytest.raises(DecodingError, match="cannot be recorded any more"):
        MODEL.generate(inputs, 4, reading=reading, names_filter=["resid_pre"])
    with pytest.raises(DecodingError, match=r"PAI\(.*reads by itself"):
        MODEL.generate(inputs, 4, reading=reading, decoding=PAI())
