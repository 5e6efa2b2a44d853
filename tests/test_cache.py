import json

import pytest
import torch

from avlens import AVCache, attention_received, discard, knockout, patch, reduce
from avlens.analyses.sinks import find_sinks
from avlens.errors import BatchError, HookError, MissingActivationError, PositionError
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import Largest, assert_equal, in_chunks_of, prompt_of

MODEL = tiny_model(n_layers=3)
INPUTS = prompt_of(MODEL, "video_and_audio")
TOKENS = INPUTS.tokens


# Filters.


def test_a_filter_keeps_what_it_names_and_nothing_else():
    _, cache = MODEL.run_with_cache(INPUTS, ["pattern", "blocks.1.hook_resid_pre"])
    assert sorted(cache) == sorted([*(f"blocks.{i}.attn.hook_pattern" for i in range(3)), "blocks.1.hook_resid_pre"])
    assert cache.layers("pattern") == [0, 1, 2] and cache.layers("resid_pre") == [1] and cache.layers("q") == []
    _, cache = MODEL.run_with_cache(INPUTS, lambda name: name == "ln_final.hook_scale")
    assert list(cache) == ["ln_final.hook_scale"]
    _, cache = MODEL.run_with_cache(INPUTS, [], reductions=[reduce("resid_pre", "norm", lambda x: x.norm(dim=-1))])
    assert sorted(cache) == [f"blocks.{i}.hook_resid_pre.norm" for i in range(3)]


def test_the_default_keeps_every_activation_that_ran_but_the_large_ones():
    _, cache = MODEL.run_with_cache(INPUTS)
    silent = {name for name in MODEL.hook_dict if name.startswith("hook_image")}
    large = {name for name in MODEL.hook_dict if name.endswith(("hook_attn_scores", "hook_pattern", "hook_result"))}
    assert set(cache) == set(MODEL.hook_dict) - silent - large


def test_a_filter_that_matches_nothing_is_refused_with_near_names():
    with pytest.raises(HookError, match="no activation is called 'residpre'. Near names: .*resid_pre"):
        MODEL.run_with_cache(INPUTS, "residpre")
    with pytest.raises(HookError, match="matches none of"):
        MODEL.run_with_cache(INPUTS, lambda name: False)


def test_activations_are_had_by_full_or_short_name_and_layer():
    _, cache = MODEL.run_with_cache(INPUTS, ["ln1.scale", "resid_pre", "pattern", "embed"])
    assert cache["resid_pre", 2] is cache["blocks.2.hook_resid_pre"] and cache["resid_pre", -1] is cache["resid_pre", 2]
    assert cache["ln1.scale", 1] is cache["blocks.1.ln1.hook_scale"] is cache["scale", 1, "ln1"]
    assert cache["pattern", 0].shape == (1, 4, len(TOKENS), len(TOKENS))
    assert cache["embed"] is cache["hook_embed"]
    for key, full in ((("resid_post", 9), "blocks.9.hook_resid_post"), ("blocks.0.hook_q", "blocks.0.hook_q")):
        with pytest.raises(
            MissingActivationError,
            match=rf"'{full}' is not in this cache, which holds 10 .*(names_filter=\[|Near names)",
        ):
            cache[key]


# Rows, positions, files.


def test_a_row_is_a_cache_of_its_own_without_padding():
    rows = [prompt_of(MODEL, kind) for kind in ("text", "video_and_audio", "image")]
    _, cache = MODEL.run_with_cache(AVInputs.batch(rows), ["resid_pre", "pattern", "result"])
    with pytest.raises(BatchError, match=r"holds 3 prompts. Choose one, such as cache.row\(0\)"):
        _ = cache.tokens
    with pytest.raises(BatchError, match="there is no row 3: this cache holds 3 prompts"):
        cache.row(3)
    for i, one in enumerate(rows):
        row = cache.row(i)
        _, alone = MODEL.run_with_cache(one, ["resid_pre", "pattern", "result"])
        assert row.tokens is one.tokens and set(row) == set(alone)
        for name in alone:
            assert_equal(row[name], alone[name])
            assert row[name].untyped_storage().nbytes() == row[name].nbytes


def test_encoder_activations_of_a_batch_do_not_pass_for_those_of_a_row():
    one = MODEL.prepare(tiny_clip(1.0, seed=1), "what ?")
    two = MODEL.prepare(tiny_clip(1.0, seed=2), "what ?")
    _, cache = MODEL.run_with_cache(AVInputs.batch([one, two]), ["resid_pre", "audio.resid_post", "audio_embed"])
    calls = cache.calls("hook_audio_embed")
    assert len(calls) == 2 and all(call.shape == (1, 25, 64) for call in calls)
    assert set(cache.row(1)) == {f"blocks.{i}.hook_resid_pre" for i in range(3)}


def test_positions_are_cut_out_in_memory_of_their_own():
    inside = ["resid_pre", "pattern", "attn_scores", "k", "embed"]
    _, cache = MODEL.run_with_cache(INPUTS, [*inside, "vision.resid_post", "video_embed"])
    assert cache["vision.blocks.0.hook_resid_post"].shape[1] == 4 * 18
    chosen = TOKENS.at([5, 70, 2])
    assert set(cache.at(chosen)) == set(MODEL.run_with_cache(INPUTS, inside)[1])
    for name, tensor in cache.at(chosen).items():
        dim = 2 if "pattern" in name or "scores" in name else 1
        assert torch.equal(tensor, cache[name].index_select(dim, torch.tensor([5, 70, 2])))
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_saved_cache_comes_back_whole(tmp_path):
    batch = AVInputs.batch([INPUTS, prompt_of(MODEL, "text")])
    norm = reduce("resid_pre", "norm", lambda x: x.norm(dim=-1))
    _, cache = MODEL.run_with_cache(batch, ["resid_pre", "pattern", "z"], reductions=[norm])
    cache.save(tmp_path / "cache.safetensors")
    loaded = AVCache.load(tmp_path / "cache.safetensors", MODEL)
    assert set(loaded) == set(cache) and all(torch.equal(loaded[name], cache[name]) for name in cache)
    assert [one.layout for one in loaded.token_maps] == list(batch.layouts)
    assert loaded.row(0).tokens.labels == TOKENS.labels and loaded.row(0).tokens.find("hear") == TOKENS.find("hear")
    assert loaded.made_by == json.loads(json.dumps(cache.made_by))
    single = MODEL.run_with_cache(INPUTS, "resid_pre")[1]
    single.save(tmp_path / "one.safetensors")
    assert torch.equal(AVCache.load(tmp_path / "one.safetensors")["resid_pre", 1], single["resid_pre", 1])


def test_a_cache_says_what_it_holds():
    _, cache = MODEL.run_with_cache(INPUTS, "resid_pre")
    assert cache.nbytes == 3 * len(TOKENS) * 64 * 4
    assert repr(cache).startswith("AVCache(3 activations, 0.1 MiB: resid_pre; TokenMap(")


# Over decoding steps.


@pytest.mark.parametrize("kind", ["video_and_audio", "batch"])
def test_activations_of_decoding_steps_are_those_of_one_run_on_the_whole_text(kind):
    # In teacher forcing the answer is part of the prompt, at the same positions.
    inputs = prompt_of(MODEL, kind)
    out = MODEL.generate(inputs, 5, names_filter=["resid_post", "pattern", "k"], min_new_tokens=5)
    n, total = inputs.shape[1], inputs.shape[1] + 4
    whole = MODEL.stock.whole
    kwargs = inputs.hf_kwargs()
    new = out.tokens[:, :4]
    kwargs["input_ids"] = torch.cat([kwargs["input_ids"], new], 1)
    kwargs["attention_mask"] = torch.cat([kwargs["attention_mask"], torch.ones_like(new)], 1)
    whole.set_attn_implementation("eager")
    with torch.no_grad():
        stock = whole(**kwargs, output_hidden_states=True, output_attentions=True)
    whole.set_attn_implementation("sdpa")
    real = kwargs["attention_mask"].bool()
    for layer in range(3):
        assert out.cache["pattern", layer].shape == (len(inputs), 4, total, total)
        assert out.cache["k", layer].shape == (len(inputs), total, 2, 16)
        assert_equal(out.cache["pattern", layer].transpose(1, 2)[real], stock.attentions[layer].transpose(1, 2)[real])
        assert len(out.cache.calls(f"blocks.{layer}.hook_resid_post")) == 5
        if layer < 2:
            assert_equal(out.cache["resid_post", layer][real], stock.hidden_states[layer + 1][real])
    assert torch.equal(out.cache.calls("blocks.0.attn.hook_k")[0], out.cache["k", 0][:, :n])


# Reductions.


def received_by_hand(pattern, queries, tokens):
    """The sum over later queries of the set, key by key."""
    n = pattern.shape[-1]
    out = torch.zeros(pattern.shape[0], pattern.shape[1], n)
    for query in queries:
        out[..., :query] += pattern[:, :, query, :query]
    return out


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_attention_received_equals_the_sum_over_the_full_pattern(monkeypatch, rows):
    in_chunks_of(rows, monkeypatch)
    _, full = MODEL.run_with_cache(INPUTS, "pattern", attn="eager")
    asked = {"audio": TOKENS.audio, "video": TOKENS.video, "last": TOKENS.last}
    reductions = [attention_received(queries, name) for name, queries in asked.items()]
    logits, cache = MODEL.run_with_cache(INPUTS, [], reductions=reductions)
    for name, queries in asked.items():
        for layer in range(3):
            assert_equal(cache[f"pattern.{name}", layer], received_by_hand(full["pattern", layer], queries, TOKENS))
    assert_equal(logits, MODEL(INPUTS))
    assert cache.layers("pattern.audio") == [0, 1, 2]


def test_reductions_see_what_edits_left_and_stay_in_chunks(monkeypatch):
    in_chunks_of(7, monkeypatch)
    edit = knockout(TOKENS.question, TOKENS.audio)
    _, full = MODEL.run_with_cache(INPUTS, "pattern", fwd_hooks=edit)
    received = attention_received(TOKENS.question, "question")
    rows = reduce("pattern", "entropy", lambda p: -(p * p.clamp(min=1e-30).log()).sum(-1))
    with Largest() as largest:
        _, cache = MODEL.run_with_cache(INPUTS, [], reductions=[received], fwd_hooks=edit, logits_at=TOKENS.last)
    assert largest.numel < 4 * len(TOKENS) ** 2
    _, entropies = MODEL.run_with_cache(INPUTS, [], reductions=[rows], fwd_hooks=edit)
    for layer in range(3):
        pattern = full["pattern", layer]
        assert_equal(cache["pattern.question", layer], received_by_hand(pattern, TOKENS.question, TOKENS))
        entropy = -(pattern * pattern.clamp(min=1e-30).log()).sum(-1)
        assert_equal(entropies["pattern.entropy", layer], entropy)
    assert (cache["pattern.question", 0][..., TOKENS.audio.positions] == 0).all()


def test_no_tensor_of_size_heads_by_positions_squared_exists_while_streaming(monkeypatch):
    clip = tiny_clip(20.0, size=(56, 56))
    inputs = MODEL.prepare(clip, "what ?")
    n = inputs.shape[1]
    assert n > 500
    in_chunks_of(16, monkeypatch)
    MODEL(inputs)
    with Largest() as streamed:
        received = attention_received(inputs.tokens.video, "video")
        MODEL.run_with_cache(inputs, [], reductions=[received], logits_at=inputs.tokens.last)
    with Largest() as explicit:
        MODEL.run_with_cache(inputs, "pattern")
    assert explicit.numel >= 4 * n * n
    assert streamed.numel < 4 * n * n / 4


def test_reductions_of_a_batch_count_each_rows_own_prompt():
    rows = [INPUTS, prompt_of(MODEL, "text")]
    reductions = [attention_received(TOKENS.question, "question")]
    _, cache = MODEL.run_with_cache(AVInputs.batch(rows), [], reductions=reductions)
    _, alone = MODEL.run_with_cache(INPUTS, [], reductions=reductions)
    assert_equal(cache["pattern.question", 1][:1], alone["pattern.question", 1])
    assert (cache["pattern.question", 1][1] == 0).all()
    swapped = MODEL.run_with_cache(AVInputs.batch(rows[::-1]), [], reductions=reductions)[1].row(1)
    assert_equal(swapped["pattern.question", 1], alone["pattern.question", 1])


def test_sums_over_decoding_steps_go_on_over_the_new_queries():
    reductions = [attention_received(TOKENS.last | TOKENS.generated, "answer")]
    out = MODEL.generate(INPUTS, 4, names_filter=["pattern"], reductions=reductions, min_new_tokens=4)
    n = len(TOKENS)
    for layer in range(3):
        wanted = received_by_hand(out.cache["pattern", layer], range(n - 1, n + 3), TOKENS)
        assert_equal(out.cache["pattern.answer", layer], wanted)
    streamed = MODEL.generate(INPUTS, 4, reductions=reductions, min_new_tokens=4)
    assert_equal(streamed.cache["pattern.answer", 2], out.cache["pattern.answer", 2])


def test_activations_can_be_kept_elsewhere_and_are_detached():
    _, cache = MODEL.run_with_cache(INPUTS, "resid_pre", device="cpu")
    assert cache["resid_pre", 0].device.type == "cpu" and not cache["resid_pre", 0].requires_grad
    cache.remove_batch_dim()
    assert cache["resid_pre", 0].shape == (len(TOKENS), 64)
    for use in (lambda: cache.row(0), lambda: cache.at(TOKENS.last), lambda: cache.save("nowhere")):
        with pytest.raises(BatchError, match="has lost its batch axis. Run again without remove_batch_dim"):
            use()


def test_what_was_recorded_after_a_discard_is_refused_where_positions_matter():
    _, cache = MODEL.run_with_cache(INPUTS, ["resid_pre"], fwd_hooks=discard(TOKENS.video, layer=1))
    assert cache["resid_pre", 2].shape[1] == len(TOKENS) - len(TOKENS.video)
    for use in (
        lambda: patch(cache, TOKENS.at([60]), layers=[2]),
        lambda: cache.at(TOKENS.audio),
        lambda: find_sinks(cache, [1]),
    ):
        with pytest.raises(PositionError, match="without discard"):
            use()
    assert patch(cache, TOKENS.at([60]), layers=[0])


def test_a_set_of_another_prompt_and_two_reductions_of_one_name_are_refused():
    other = MODEL.prepare(tiny_clip(1.0), "what ?").tokens
    _, cache = MODEL.run_with_cache(INPUTS, ["resid_pre"])
    with pytest.raises(PositionError, match="another layout"):
        cache.at(other.audio)
    norm = reduce("resid_pre", "norm", lambda x: x.norm(dim=-1))
    with pytest.raises(HookError, match="a label of its own"):
        MODEL.run_with_cache(INPUTS, [], reductions=[norm, norm])


def test_a_reduction_of_the_whole_pattern_is_given_the_whole_pattern(monkeypatch):
    in_chunks_of(7, monkeypatch)
    _, full = MODEL.run_with_cache(INPUTS, "pattern")
    _, most = MODEL.run_with_cache(INPUTS, [], reductions=[reduce("pattern", "most", lambda p: p.amax(2))])
    assert_equal(most["pattern.most", 1], full["pattern", 1].amax(2))


@pytest.mark.parametrize(
    "name", ["blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "hook_embed", "blocks.0.attn.hook_q"]
)
def test_a_hook_that_changes_the_shape_is_refused(name):
    with pytest.raises(HookError, match="the same shape"):
        MODEL.run_with_hooks(INPUTS, [(name, lambda x, hook: x[:, :1])])
