"""What every family promises: the laws, hooks, interventions, analyses, decoding, the command line, and loading."""

import ast
import copy
import gc
import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from avlens import HookedAVModel, ablate, cli, discard, knockout, patch, reweight
from avlens.analyses.dominance import modality_dominance, split_sinks
from avlens.analyses.sinks import find_sink_dims, find_sinks
from avlens.analyses.tracing import causal_trace
from avlens.datasets.synthetic import ball_and_bell
from avlens.decoding import ASD, AVCD, FMD, PAI, VCD
from avlens.errors import CheckpointError, PromptError, UnsupportedSettingError
from avlens.families import FAMILIES
from avlens.inputs import AVInputs
from avlens.laws import check_laws, laws_table
from avlens.testing import tiny_clip, tiny_model
from tests.helpers import assert_equal, largest_difference, points_that_run, prompt_of

ROOT = Path(__file__).parents[2]
FAMILY = {family.name: family for family in FAMILIES}
MODELS = {name: tiny_model(name) for name in FAMILY}
MODELS["video_salmonn_o1, 2"] = tiny_model("video_salmonn_o1", variant="video_salmonn_2")
CLIP = tiny_clip(2.6, size=(84, 56), seed=3)

every_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
every_family = pytest.mark.parametrize("name", FAMILY)


def asked(model, clip=CLIP, question="what do you hear ?"):
    return model.prepare(clip, question)


# The decoder and its hooks.


@every_model
def test_the_laws_hold(model):
    laws = check_laws(model, asked(model))
    assert len(laws) == 8 + model.family.has_stock
    assert all(law.holds for law in laws), laws_table(laws)


def changed(x, hook):
    """The activation, moved; the chosen experts, exchanged for others."""
    return x + 0.3 * torch.rand_like(x) if x.is_floating_point() else (x + 1) % 4


@every_model
def test_a_change_at_any_hook_point_reaches_the_logits(model):
    inputs = asked(model)
    idle, ran = model(inputs), points_that_run(model, inputs)
    assert set(model.hook_dict) - set(ran) == {"hook_image_embed"}
    for name in ran:
        moved = model.run_with_hooks(inputs, fwd_hooks=[(name, changed)])
        # Where queries, keys and values are normed once more, the scale of what they are made from does not matter.
        matters = not (model.cfg.use_normalization_before_and_after and name.endswith("ln1.hook_scale"))
        assert moved.isfinite().all() and (largest_difference(moved, idle) > 1e-4) == matters, name


@every_model
def test_every_layer_of_every_encoder_can_be_read_and_replaced(model):
    inputs = asked(model)
    _, cache = model.run_with_cache(inputs, lambda name: name.split(".")[0] in model.stock.encoders)
    read = {f"{encoder}.blocks.{i}.hook_resid_post" for encoder, blocks in model.stock.encoder_blocks.items()
            for i in range(len(blocks))}  # fmt: skip
    patterns = {name.replace("hook_resid_post", "attn.hook_pattern") for name in read}
    assert set(cache.keys()) == read | patterns and {"vision", "audio"} <= set(model.stock.encoders)
    assert not patterns & set(model.run_with_cache(inputs)[1].keys())
    for name in read:
        assert cache[name].shape[0] == 1 and cache[name].ndim == 3
        same = model.run_with_hooks(inputs, [(name, lambda x, hook, kept=cache[name]: kept)])
        assert_equal(same, model(inputs))


@every_model
def test_prompts_of_every_kind_run_and_say_what_they_are(model):
    for kind in ("video_and_audio", "question_first", "audio", "video", "image", "text", "interleaved"):
        try:
            inputs = prompt_of(model, kind)
        except PromptError as refused:
            assert "single images" in str(refused) and kind in ("image", "interleaved")
            continue
        tokens = inputs.tokens
        assert model(inputs).isfinite().all() and inputs.positions.shape == (3, 1, len(tokens))
        heard = tokens.audio.positions
        assert bool(heard.numel()) == (kind in ("video_and_audio", "question_first", "audio", "interleaved")) or (
            kind == "video" and bool(tokens.is_pad[heard].all())
        )
        assert (tokens.end[heard] > tokens.start[heard]).all() and tokens.start[heard].isfinite().all()
        seen = tokens.video.positions
        assert (tokens.row[seen] >= 0).all() and (tokens.col[seen] >= 0).all() and tokens.start[seen].isfinite().all()
        placed = torch.cat([media.positions for media in inputs.prompt.media] or [torch.empty(0, dtype=torch.long)])
        assert set(placed.tolist()) == set(tokens.media | tokens.separator)
        assert "".join(tokens.strings[i] for i in tokens.question) == tokens.prompt[slice(*_span(tokens))]


def _span(tokens):
    offsets = tokens.offsets[tokens.question.positions]
    return int(offsets[:, 0].min()), int(offsets[:, 1].max())


@every_model
def test_silence_keeps_the_layout_and_changes_the_sound_alone(model):
    clean, mute = asked(model), asked(model, CLIP.silenced())
    assert clean.tokens.layout == mute.tokens.layout
    names = ["hook_audio_embed", "hook_video_embed"]
    (_, one), (_, two) = (model.run_with_cache(inputs, names) for inputs in (clean, mute))
    assert torch.equal(one["hook_video_embed"], two["hook_video_embed"])
    assert not torch.equal(one["hook_audio_embed"], two["hook_audio_embed"])


# What is built on them.


@every_model
def test_every_intervention_runs_and_acts(model):
    inputs = asked(model)
    tokens, idle = inputs.tokens, model(inputs)
    _, cache = model.run_with_cache(asked(model, CLIP.silenced()), ["resid_pre", "k", "v"])
    late = [layer for layer in cache.layers("k") if layer > 0]
    edits = {
        "patch": patch(cache, tokens.audio), "patch keys": patch(cache, tokens.audio, site="k", layers=late),
        "knockout": knockout(tokens.question, tokens.video), "reweight": reweight(tokens.question, tokens.audio, 2.0),
        "ablate": ablate(tokens.video, site="resid_pre", layers=[1]),
    }  # fmt: skip
    for name, hooks in edits.items():
        assert largest_difference(model.run_with_hooks(inputs, hooks)[:, -1], idle[:, -1]) > 1e-5, name
        assert model.generate(inputs, 2, fwd_hooks=hooks).tokens.shape[1] <= 2
    assert model.run_with_hooks(inputs, discard(tokens.audio, layer=1)).shape[1] == len(tokens) - len(tokens.audio)


@every_model
def test_every_analysis_and_decoding_method_runs(model):
    inputs, mute = asked(model), asked(model, CLIP.silenced())
    _, cache = model.run_with_cache(inputs, ["resid_pre", "pattern"])
    sinks = find_sinks(cache, find_sink_dims(model))
    chosen = sinks.tokens & inputs.tokens.media or inputs.tokens.at(inputs.tokens.media.positions[:6].tolist())
    scores = modality_dominance(cache, chosen)
    assert scores.score.shape == (3, len(chosen)) and split_sinks(scores)
    traced = causal_trace(model, inputs, mute, {"media": inputs.tokens.media, "audio": inputs.tokens.audio})
    assert len(traced.to_frame()) == 2
    greedy = model.generate(inputs, 4)
    assert torch.equal(model.generate(inputs, 4, decoding=ASD(strength=0.0)).tokens, greedy.tokens)
    for method in (ASD(), VCD(), PAI(), AVCD(), FMD()):
        assert 1 <= model.generate(inputs, 2, decoding=method).tokens.shape[1] <= 2


@every_model
def test_a_padded_batch_generates_what_its_rows_do(model):
    rows = [asked(model), model.prepare([], "is it a bell ?")]
    together = model.generate(AVInputs.batch(rows), 4, min_new_tokens=4)
    for row, one in enumerate(rows):
        assert torch.equal(together.tokens[row], model.generate(one, 4, min_new_tokens=4).tokens[0])


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    return str(ball_and_bell(1.5, fps=2.0, size=(56, 56)).to_file(tmp_path_factory.mktemp("clips") / "ball.mp4"))


@every_family
def test_every_command_runs(name, clip_file, tmp_path, monkeypatch, capsys):
    MODELS[name].save_pretrained(tmp_path / "model")
    commands = (
        ["check", tmp_path / "model"],
        ["tokens", clip_file, "--model", tmp_path / "model"],
        ["sinks", clip_file, "--model", tmp_path / "model"],
        ["trace", clip_file, "--corrupt", "video", "--model", tmp_path / "model"],
        ["caption", clip_file, "--decoding", "asd", "--max-new-tokens", "3", "--model", tmp_path / "model"],
    )
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["avlens", *map(str, command), "--json"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code == 0, (command, err)
        assert json.loads(out)


def spoken(tree):
    """The names, imports, strings and comparisons of a module; its docstrings say what they like."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Compare):
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_no_line_outside_the_families_is_one_familys():
    """None is named, imported or asked for by name outside `families/`; `testing` has one for its default.

    Left out is `training/`, which makes the embedded model: that is of one family.
    """
    classes = [family.__name__ for family in FAMILIES]
    telling = re.compile(rf"\b({'|'.join([*FAMILY, *classes])})\b|avlens\.families\.\w|family\.(name|title)\b.*=")
    found = {
        (path.name, text)
        for path in (ROOT / "avlens").rglob("*.py")
        if path.parent.name not in ("families", "training")
        for text in spoken(ast.parse(path.read_text(encoding="utf-8")))
        if telling.search(text)
    }
    assert found == {("testing.py", "qwen2_5_omni")}


# Loading.


def sections(config, where=""):
    yield where, config
    for name, value in config.items():
        if name.endswith("_config") and isinstance(value, dict) and name not in ("talker_config", "code2wav_config"):
            yield from sections(value, f"{where}.{name}" if where else name)


@every_family
def test_a_setting_that_nobody_handled_is_refused_by_name(name, tmp_path):
    MODELS[name].save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text()
    places = [where for where, _ in sections(json.loads(written))]
    for where in places:
        config = json.loads(written)
        dict(sections(config))[where]["attention_gate"] = 3
        (tmp_path / "config.json").write_text(json.dumps(config))
        full = f"{where}.attention_gate" if where else "attention_gate"
        with pytest.raises(UnsupportedSettingError, match=rf"sets {full} = 3.*ignore_settings=\['{full}'\]"):
            HookedAVModel.from_pretrained(tmp_path)
    FAMILY[name].check(json.loads(written))
    assert sum(family.matches(json.loads(written)) for family in FAMILIES) == 1


@every_family
def test_sizes_that_a_family_does_not_know_are_refused(name):
    with pytest.raises(CheckpointError, match="'n_wheels' is no size of a tiny model. Sizes are n_layers"):
        tiny_model(name, n_wheels=4)


def in_shards(folder, n=3):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {}
    for i in range(n):
        file = f"model-{i + 1:05}-of-{n:05}.safetensors"
        keys = sorted(state)[i::n]
        save_file({key: state[key] for key in keys}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(keys, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def places(module, on_disk, layers, where=""):
    """A device map that leaves some layers on disk."""
    for name, child in module.named_children():
        full = f"{where}.{name}" if where else name
        if child not in layers and layers & set(child.modules()):
            yield from places(child, on_disk, layers, full)
        else:
            yield full, "disk" if child in on_disk else "cpu"


@every_family
def test_shards_spread_over_devices_and_disk_give_the_same_logits(name, tmp_path):
    pytest.importorskip("accelerate")
    model = MODELS[name]
    model.save_pretrained(tmp_path / "model")
    in_shards(tmp_path / "model")
    inputs = asked(model)
    for device_map in ("auto", {"": "cpu"}):
        loaded = HookedAVModel.from_pretrained(tmp_path / "model", device_map=device_map)
        assert_equal(loaded(inputs), model(inputs))
    spread = dict(places(model.stock.whole, set(model.stock.layers[1:]), set(model.stock.layers)))
    loaded = HookedAVModel.from_pretrained(
        tmp_path / "model", device_map=spread, offload_folder=str(tmp_path / "offload")
    )
    assert loaded.stock.layers[1].self_attn.q_proj.weight.device.type == "meta"
    got, cache = loaded.run_with_cache(inputs, ["resid_post", "pattern"])
    assert_equal(got, model(inputs, attn="eager"))
    assert torch.equal(loaded.blocks[2].attn.W_Q, model.blocks[2].attn.W_Q)


@every_family
def test_an_unembedding_that_the_checkpoint_lacks_is_tied(name, tmp_path):
    model = tiny_model(name, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert not any("lm_head" in key for key in load_file(tmp_path / "model.safetensors"))
    loaded = HookedAVModel.from_pretrained(tmp_path)
    assert loaded.unembed.weight is loaded.embed.weight and torch.equal(loaded.W_E, model.W_E)
    assert torch.equal(loaded(asked(model)), model(asked(model)))


@every_family
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_loads_and_stays_near(name, dtype, tmp_path):
    model = MODELS[name]
    model.save_pretrained(tmp_path)
    half = HookedAVModel.from_pretrained(tmp_path, dtype=dtype)
    assert half.cfg.dtype == getattr(torch, dtype)
    cast = HookedAVModel.from_pretrained(tmp_path).to(half.dtype)
    tables = [(one.dtype, other.dtype) for one, other in zip(cast.buffers(), half.buffers(), strict=True)]
    assert all(one in (other, torch.float32) for one, other in tables)
    assert torch.equal(cast(asked(cast)), half(asked(half))) or any(one != other for one, other in tables)
    assert {weight.dtype for weight in half.parameters()} == {half.cfg.dtype}
    # Not the largest difference: where experts are chosen, a close call may go the other way.
    differences = (half(asked(half)).float() - model(asked(model))).abs()
    assert float(differences.median()) < {"bfloat16": 0.05, "float16": 0.005}[dtype]


@every_model
def test_copies_and_pickles_are_models_of_their_own(model):
    inputs, edit = asked(model), ("audio.blocks.0.hook_resid_post", lambda x, hook: 2 * x)
    idle, moved = model(inputs), model.run_with_hooks(inputs, [edit])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(asked(other)), idle)
        assert torch.equal(other.run_with_hooks(inputs, [edit]), moved)
        assert other.generate(inputs, 2).texts == model.generate(inputs, 2).texts
        for parameter in other.parameters():
            parameter.zero_()
        other.forget_encodings()
        assert not other(inputs).any() and other.stock.whole.get_input_embeddings().weight is other.W_E
    assert torch.equal(model(inputs), idle) and torch.equal(model.run_with_hooks(inputs, [edit]), moved)


class Int8Linear(nn.Module):
    """What bitsandbytes and torchao do, without them: int8 weights with a scale per row, made whole when used."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias, self.in_features, self.out_features = linear.bias, linear.in_features, linear.out_features

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@every_family
def test_quantised_linears_run_under_hooks(name):
    plain = tiny_model(name)
    inputs = asked(plain)
    wanted = plain(inputs)
    for layer in plain.stock.layers:
        for owner in [module for module in layer.modules() if not isinstance(module, Int8Linear)]:
            for key, linear in list(owner.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(owner, key, Int8Linear(linear))
    model = HookedAVModel(plain.family, plain.stock)
    got, cache = model.run_with_cache(inputs, ["resid_post", "pattern", "z"])
    assert 0 < largest_difference(got, wanted) < 0.3 * float(wanted.abs().max())
    assert (
        largest_difference(model.run_with_hooks(inputs, knockout(inputs.tokens.question, inputs.tokens.audio)), got)
        > 1e-5
    )
    assert torch.equal(model.generate(inputs, 2).tokens, model.generate(inputs, 2).tokens)


def memory(field):
    """MiB of this process, as Linux counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
@every_family
def test_loading_makes_no_second_copy_of_the_weights(name, tmp_path):
    tiny_model(name, d_model=256, d_vocab=50_000, n_layers=2).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size / 2**20
    HookedAVModel.from_pretrained(tmp_path)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    model = HookedAVModel.from_pretrained(tmp_path)
    model(asked(model))
    assert size > 90 and memory("VmHWM") - before < 1.3 * size + 30
