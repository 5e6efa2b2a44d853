"""Qwen2.5-Omni beside the unmodified transformers code: positions, order, sound, pixels, checkpoints, whole sizes."""

import ast
import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration, WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

from avlens import Clip, HookedAVModel
from avlens.encoders.mel import log_mel
from avlens.encoders.patches import PatchRules, cut_patches, fitted_size
from avlens.errors import CheckpointError, PromptError, UnsupportedSettingError
from avlens.families.qwen2_5_omni import Qwen25Omni
from avlens.inputs import AVInputs
from avlens.testing import tiny_clip, tiny_model
from avlens.thinkers import thinker_stock
from avlens.tokens import Modality
from tests.helpers import assert_equal, prompt_from, prompt_of, recipes

MODEL = tiny_model()
FRAMES = torch.randint(0, 256, (12, 3, 70, 100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def clip_of(video_seconds, audio_seconds, fps, size=(56, 56)):
    seen = tiny_clip(video_seconds, fps=fps, size=size, audio=False)
    return Clip(seen.frames, fps, torch.randn(round(audio_seconds * 16000)) / 10, 16000)


def stock_positions(inputs):
    kwargs = inputs.hf_kwargs()
    mask = kwargs.get("feature_attention_mask")
    positions, delta = MODEL.stock.whole.model.get_rope_index(
        kwargs["input_ids"],
        kwargs.get("image_grid_thw"),
        kwargs.get("video_grid_thw"),
        kwargs["attention_mask"],
        kwargs.get("use_audio_in_video", False),
        None if mask is None else mask.sum(1),
        kwargs.get("video_second_per_grid"),
    )
    return positions, delta


def assert_positions_are_the_stock_models(inputs):
    positions, delta = stock_positions(inputs)
    real = inputs.attention_mask.bool()
    assert torch.equal(inputs.positions[:, real], positions.long()[:, real])
    if "video_grid_thw" in inputs.hf_kwargs() or "image_grid_thw" in inputs.hf_kwargs():
        lengths = torch.tensor([len(prompt.ids) for prompt in inputs.prompts])
        assert torch.equal(inputs.next_positions, lengths + delta.flatten())


# Positions and order.


@pytest.mark.parametrize("nominal_fps", [2.0, 1.0, 4.0, 0.9, 0.3, 1.7])
@pytest.mark.parametrize("fps", [1.0, 2.0, 5.0])
def test_positions_equal_the_stock_models_over_a_grid_of_clips(nominal_fps, fps):
    for video_seconds, audio_seconds in [(1, 1), (5, 5), (6.5, 2.1), (2, 9.3), (4.0, 4.04), (12, 0.2)]:
        for size in [(28, 28), (84, 140)]:
            clip = clip_of(video_seconds, audio_seconds, fps, size)
            for order in ("media_first", "question_first"):
                inputs = MODEL.prepare(clip, "what ?", order=order, nominal_fps=nominal_fps)
                assert_positions_are_the_stock_models(inputs)


@given(rows=st.lists(recipes(), min_size=1, max_size=3))
@settings(max_examples=40)
def test_positions_of_any_prompt_equal_the_stock_models(rows):
    try:
        inputs = AVInputs.batch([prompt_from(MODEL, row) for row in rows])
        inputs.hf_kwargs()
    except PromptError:
        return
    assert_positions_are_the_stock_models(inputs)


def official_order(grids, merged, per_grid, n_audio):
    """The processor's own code, without the processor."""
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2),
        audio_bos_token="B",
        audio_eos_token="E",
        video_token="V",
        audio_token="A",
        get_chunked_index=lambda index, n: Qwen2_5OmniProcessor.get_chunked_index(None, index, n),
    )
    return Qwen2_5OmniProcessor.replace_video_with_audio_token(
        processor,
        {
            "video_grid_thw": torch.tensor([[grids, 2 * merged[0], 2 * merged[1]]]).numpy(),
            "video_second_per_grid": [per_grid],
        },
        0,
        {"num_audio_tokens": [n_audio]},
        0,
        position_id_per_seconds=25,
        seconds_per_chunk=2,
    )


@given(
    n_frames=st.integers(1, 24),
    audio_seconds=st.floats(0.1, 12.0),
    nominal_fps=st.floats(0.2, 9.0),
    size=st.sampled_from([(56, 56), (28, 84), (84, 112)]),
)
@example(n_frames=6, audio_seconds=12.0, nominal_fps=0.5, size=(56, 56))
@example(n_frames=24, audio_seconds=0.1, nominal_fps=2.0, size=(56, 56))
@settings(max_examples=60)
def test_tokens_come_in_the_order_of_the_official_processor(n_frames, audio_seconds, nominal_fps, size):
    clip = clip_of(n_frames / 2, audio_seconds, 2.0, size)
    inputs = MODEL.prepare(clip, "", nominal_fps=nominal_fps)
    tokens = inputs.tokens
    first = int(tokens.media.positions.min()) - 1
    ours = "".join({Modality.AUDIO: "A", Modality.VIDEO: "V"}.get(kind, "-") for kind in tokens.modality.tolist())
    merged = int(tokens.row.max()) + 1, int(tokens.col.max()) + 1
    wanted = official_order(int(tokens.frame.max()) + 1, merged, 2 / nominal_fps, len(tokens.audio))
    assert tokens.strings[first] == "<|audio_bos|>"
    assert ours[first : first + len(wanted)] == wanted.replace("B", "-").replace("E", "-")
    assert torch.equal(inputs.positions, stock_positions(inputs)[0][:, 0][:, None].long())


def test_frames_are_split_among_chunks_where_a_grid_is_longer_than_a_chunk():
    tokens = MODEL.prepare(clip_of(3, 9, 2.0), "", nominal_fps=0.5).tokens
    runs = tokens.chunk[tokens.media.positions].unique_consecutive(return_counts=True)[1].tolist()
    assert runs[:4] == [4, 50, 1, 50]
    assert runs == [len(run) for run in _split(official_order(3, (2, 2), 4.0, len(tokens.audio)))]


def _split(order):
    runs = [[order[1]]]
    for one in order[2:-1]:
        if one == runs[-1][-1]:
            runs[-1].append(one)
        else:
            runs.append([one])
    return runs


def test_columns_of_the_token_map_say_when_and_where_each_token_is():
    clip = clip_of(3.0, 2.5, 2.0, (56, 84))
    tokens = MODEL.prepare(clip, "what ?", nominal_fps=1.0).tokens
    video, audio = tokens.to_frame().loc[tokens.video.positions], tokens.to_frame().loc[tokens.audio.positions]
    assert list(zip(video.frame, video.row, video.col, strict=True)) == [
        (frame, row, col) for frame in range(3) for row in range(2) for col in range(3)
    ]
    assert (video.start == video.frame * 1.0).all() and (video.nominal_start == video.frame * 2.0).all()
    assert (video.end == video.start + 1.0).all() and (video.nominal_end == video.nominal_start + 2.0).all()
    assert list(audio.audio_frame) == list(range(len(audio))) and len(audio) == 62
    assert (audio.start - 0.04 * audio.audio_frame).abs().max() < 1e-6
    assert (audio["clip"] == 0).all() and (video["clip"] == 0).all()


# Sound.


@pytest.mark.parametrize("n", [400, 1600, 1601, 16000, 80321])
def test_mel_is_the_stock_extractors_trimmed_by_its_mask(n):
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=300)
    for waveform in (torch.randn(n) * 0.3, torch.zeros(n)):
        stock = extractor(
            waveform.numpy(), sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        trimmed = stock["input_features"][0][:, stock["attention_mask"][0].bool()]
        torch.testing.assert_close(
            log_mel(waveform, extractor), trimmed, atol=2e-6, rtol=0
        )  # a product of fewer columns
        assert trimmed.shape[1] == math.ceil(n / 160)


def test_a_sound_too_long_or_too_short_is_refused_with_what_to_do():
    extra = Clip(waveform=torch.zeros(16000 * 301), sample_rate=16000)
    with pytest.raises(PromptError, match=r"lasts 301.0 s.*clip.cut\(0, 300\)"):
        MODEL.prepare(extra, "what ?")
    with pytest.raises(PromptError, match="320 samples, too few for one token"):
        MODEL.prepare(Clip(waveform=torch.zeros(320), sample_rate=16000), "what ?")


# Pixels.


def slow_patches(frames, rules, height, width):
    """Patch by patch, as the paper says it: neighbours that are merged stand together; channel, time, row, column."""
    if frames.shape[-2:] != (height, width):
        frames = torch.stack(
            [F.interpolate(f[None], (height, width), mode="bicubic", antialias=True)[0] for f in frames]
        )
    frames = list(frames)
    while len(frames) % rules.temporal:
        frames.append(frames[-1])
    p, m, out = rules.patch, rules.merge, []
    for start in range(0, len(frames), rules.temporal):
        for row in range(height // (p * m)):
            for col in range(width // (p * m)):
                for down in range(m):
                    for right in range(m):
                        top, left = (row * m + down) * p, (col * m + right) * p
                        values = []
                        for channel in range(3):
                            for frame in frames[start : start + rules.temporal]:
                                cut = frame[channel, top : top + p, left : left + p].float()
                                mean, std = (
                                    torch.tensor(rules.mean)[channel] * 255,
                                    torch.tensor(rules.std)[channel] * 255,
                                )
                                values.append(((cut - mean) / std).flatten())
                        out.append(torch.cat(values))
    return torch.stack(out)


@pytest.mark.parametrize("n_frames", [1, 2, 5])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (70, 100), (84, 28), (300, 90)])
def test_patches_equal_a_slow_loop(n_frames, height, width):
    frames = torch.randint(0, 256, (n_frames, 3, height, width), dtype=torch.uint8)
    rules = MODEL.family.reading.rules
    patches = cut_patches(frames, rules, 4 * 28 * 28, 16 * 28 * 28)
    sides = patches.grid[1] * 14, patches.grid[2] * 14
    assert torch.equal(patches.pixels, slow_patches(frames, rules, *sides))
    assert patches.grid == (math.ceil(n_frames / 2), sides[0] // 14, sides[1] // 14)


def stock_resize():
    """transformers' smart_resize, taken out of a module that cannot be imported without Pillow."""
    path = Path(transformers.__file__).parent / "models/qwen2_vl/image_processing_pil_qwen2_vl.py"
    found = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "smart_resize"]
    scope = {"math": math}
    exec(compile(ast.Module(found, []), str(path), "exec"), scope)
    return scope["smart_resize"]


STOCK_RESIZE = stock_resize()


@given(height=st.integers(8, 900), width=st.integers(8, 900), low=st.integers(1, 40), share=st.integers(1, 30))
@settings(max_examples=80)
def test_fitted_sides_are_those_of_transformers(height, width, low, share):
    low, high = low * 784, (low + share) * 784
    assert fitted_size(height, width, 28, low, high) == STOCK_RESIZE(height, width, 28, low, high)


def test_patches_are_bit_equal_to_the_stock_processors():
    try:
        importlib.import_module("torchvision")
        from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import here: {error}")
    bounds = {"shortest_edge": 4 * 784, "longest_edge": 16 * 784}
    stock = Qwen2VLVideoProcessor(size=bounds)(FRAMES, return_tensors="pt", do_sample_frames=False)
    ours = cut_patches(FRAMES, MODEL.family.reading.rules, 4 * 784, 16 * 784)
    assert torch.equal(stock["pixel_values_videos"], ours.pixels)
    assert stock["video_grid_thw"].tolist() == [list(ours.grid)]
    picture = Qwen2VLImageProcessor(size=bounds)(FRAMES[0], return_tensors="pt")
    assert torch.equal(
        picture["pixel_values"], cut_patches(FRAMES[:1], MODEL.family.reading.rules, 4 * 784, 16 * 784).pixels
    )


def test_too_long_a_frame_is_refused():
    rules = PatchRules(14, 2, 2, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(PromptError, match="more than 200 times longer than wide. Crop it"):
        cut_patches(torch.zeros(1, 3, 4000, 10, dtype=torch.uint8), rules, 784, 7840)


# What an encoder's hook points hold.


def test_vision_hooks_see_patches_in_the_order_of_frame_row_and_column():
    inputs = MODEL.prepare(clip_of(2.0, 1.0, 2.0, (84, 112)), "what ?")
    grid = inputs.prompt.media[0].tensors["grid"].tolist()
    _, plain = MODEL.run_with_cache(inputs, "hook_video_embed")
    for index in (0, 5, 17, 40, grid[0] * grid[1] * grid[2] - 1):

        def bump(x, hook, index=index):
            out = x.clone()
            out[:, index] += torch.randn(x.shape[-1])
            return out

        _, bumped = MODEL.run_with_cache(
            inputs, "hook_video_embed", fwd_hooks=[("vision.blocks.1.hook_resid_post", bump)]
        )
        moved = (bumped["hook_video_embed"] != plain["hook_video_embed"]).any(-1)[0].nonzero()[:, 0].tolist()
        frame, row, col = index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2]
        video = inputs.tokens.video
        here = [video.positions.tolist()[at] for at in moved]
        assert [[int(inputs.tokens.frame[p]), int(inputs.tokens.row[p]), int(inputs.tokens.col[p])] for p in here] == [
            [frame, row // 2, col // 2]
        ]


def test_audio_hooks_see_frames_in_the_order_of_time():
    inputs = MODEL.prepare(clip_of(5.0, 5.0, 2.0), "what ?")
    _, plain = MODEL.run_with_cache(inputs, "hook_audio_embed")
    for index in (0, 7, 101, 249):

        def bump(x, hook, index=index):
            out = x.clone()
            out[:, index] += torch.randn(x.shape[-1])
            return out

        _, bumped = MODEL.run_with_cache(
            inputs, "hook_audio_embed", fwd_hooks=[("audio.blocks.1.hook_resid_post", bump)]
        )
        moved = (bumped["hook_audio_embed"] != plain["hook_audio_embed"]).any(-1)[0].nonzero()[:, 0].tolist()
        assert moved == [index // 2]


# Checkpoints.


def write_checkpoint(folder, model, *, layout="hub", shards=1, lm_head=True, extra=()):
    """A checkpoint in one of the three key layouts."""
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    if not lm_head:
        del state["thinker.lm_head.weight"]
    state |= {key: torch.ones(3) for key in extra}
    if layout == "scratch":
        state = {key.removeprefix("thinker."): value for key, value in state.items()}
    if layout == "memory":
        renamed = {}
        for key, value in state.items():
            key = key.removeprefix("thinker.")
            key = f"model.{key}" if key.startswith(("audio_tower", "visual")) else key
            renamed[
                "model.language_model." + key[6:]
                if key.startswith(("model.layers", "model.embed", "model.norm"))
                else key
            ] = value
        state = renamed
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({name: state[name] for name in names[i::shards]}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names[i::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def logits_of(model):
    return model(prompt_of(model, "video_and_audio"))


@pytest.mark.parametrize("layout", ["hub", "memory", "scratch"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("lm_head", [True, False])
def test_a_checkpoint_loads_from_each_key_layout(tmp_path, layout, shards, lm_head):
    model = tiny_model(seed=4, tie_word_embeddings=not lm_head)
    extra = ["talker.model.norm.weight", "token2wav.bigvgan.conv.weight"] if layout == "hub" else []
    folder = write_checkpoint(tmp_path, model, layout=layout, shards=shards, extra=extra)
    loaded = HookedAVModel.from_pretrained(folder)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert loaded.cfg.model_name == tmp_path.name


def test_an_unembedding_that_the_checkpoint_lacks_is_tied_whatever_its_config_says(tmp_path):
    model = tiny_model(seed=4)
    folder = write_checkpoint(tmp_path, model, lm_head=False)
    loaded = HookedAVModel.from_pretrained(folder)
    assert torch.equal(loaded.W_U, loaded.W_E.T)
    assert torch.equal(loaded.W_E, model.W_E)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(HookedAVModel.from_pretrained(tmp_path / "again")), logits_of(loaded))


def test_missing_unknown_and_misshapen_weights_are_refused_by_name(tmp_path):
    whole = write_checkpoint(tmp_path / "whole", tiny_model())
    state = load_file(whole / "model.safetensors")
    key = "thinker.model.layers.1.self_attn.q_proj.bias"

    def refused(state, message):
        save_file(state, whole / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            HookedAVModel.from_pretrained(whole)

    refused({k: v for k, v in state.items() if k != key}, r"1 missing \['model.*layers.1.self_attn.q_proj.bias'\]")
    refused(
        state | {"thinker.model.layers.1.self_attn.q_norm.weight": torch.ones(16)}, r"1 unknown \['.*q_norm.weight'\]"
    )
    refused(state | {key: torch.ones(3)}, "0 missing .*1 of another shape. Download it again")


def test_a_saved_model_loads_in_stock_transformers_and_here_with_equal_logits(tmp_path):
    model = tiny_model(seed=2, n_layers=2)
    model.save_pretrained(tmp_path)
    inputs = prompt_of(model, "interleaved")
    stock = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    with torch.no_grad():
        assert_equal(stock(**inputs.hf_kwargs()).logits, model(inputs))
    again = HookedAVModel.from_pretrained(tmp_path)
    prepared = prompt_of(again, "interleaved")
    assert torch.equal(prepared.ids, inputs.ids) and prepared.layouts == inputs.layouts
    assert torch.equal(again(prepared), model(inputs))
    assert again.generate(prepared, 5).text == model.generate(inputs, 5).text


def test_the_thinkers_own_folder_written_by_transformers_loads(tmp_path):
    model = tiny_model(seed=3)
    model.stock.whole.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(dict(model.family.reading.preprocessor)))
    (tmp_path / "avlens.json").write_text(json.dumps(dict(model.family.reading.settings)))
    loaded = HookedAVModel.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("text_config", "use_sliding_window", True),
        ("text_config", "hidden_act", "gelu"),
        ("text_config", "rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("text_config", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}),
        ("text_config", "layer_types", ["full_attention", "sliding_attention"]),
        ("text_config", "attention_logit_softcap", 30.0),
        ("vision_config", "use_register_tokens", True),
    ],
)
def test_a_setting_that_changes_the_forward_pass_is_refused_by_name(tmp_path, section, setting, value):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["thinker_config"][section][setting] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    full = f"thinker_config.{section}.{setting}"
    with pytest.raises(UnsupportedSettingError, match=rf"sets {full} = .*ignore_settings=\['{full}'\]"):
        HookedAVModel.from_pretrained(tmp_path)
    Qwen25Omni.check(config, ignore=[full])
    if setting in ("use_register_tokens", "attention_logit_softcap"):
        assert torch.equal(logits_of(HookedAVModel.from_pretrained(tmp_path, ignore_settings=[full])), logits_of(model))


def test_recent_checkpoints_say_how_to_read_images_and_sound_in_one_file(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    old = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    bounds = {"shortest_edge": old.pop("min_pixels"), "longest_edge": old.pop("max_pixels")}
    image = {name: old.pop(name) for name in ("image_mean", "image_std", "merge_size", "patch_size")} | {"size": bounds}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": image, "feature_extractor": old}))
    loaded = HookedAVModel.from_pretrained(tmp_path)
    for kind in ("audio", "image"):
        assert torch.equal(loaded(prompt_of(loaded, kind)), model(prompt_of(model, kind)))


def test_a_folder_or_name_without_a_checkpoint_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(CheckpointError, match="holds no config.json"):
        HookedAVModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint 'avlens-tinny'.*no folder, and no hub id"):
        HookedAVModel.from_pretrained("avlens-tinny")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="'llama' model, which no family of avlens knows. Known: Qwen2.5-Omni"):
        HookedAVModel.from_pretrained(tmp_path)


def test_stock_arguments_for_videos_with_and_without_sound_are_refused():
    both = MODEL.prepare([clip_of(1, 1, 2.0), tiny_clip(1, audio=False)], "what ?")
    assert MODEL(both).isfinite().all()
    with pytest.raises(PromptError, match="all with sound or all without"):
        both.hf_kwargs()


# Whole sizes.

RELEASED = {
    "7B": {
        "d": 3584,
        "layers": 28,
        "heads": 28,
        "kv": 4,
        "mlp": 18944,
        "vocab": 152064,
        "tensors": 1346,
        "decoder": 339,
    },
    "3B": {
        "d": 2048,
        "layers": 36,
        "heads": 16,
        "kv": 2,
        "mlp": 11008,
        "vocab": 151936,
        "tensors": 1442,
        "decoder": 435,
    },
}


@pytest.mark.parametrize("size", RELEASED)
def test_the_released_sizes_fit_the_hooked_decoder_without_memory(size):
    is_ = SimpleNamespace(**RELEASED[size])
    config = Qwen2_5OmniThinkerConfig(
        text_config={
            "hidden_size": is_.d, "num_hidden_layers": is_.layers, "num_attention_heads": is_.heads, "vocab_size": is_.vocab,
            "num_key_value_heads": is_.kv, "intermediate_size": is_.mlp,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        audio_config={"output_dim": is_.d}, vision_config={"hidden_size": 1280, "out_hidden_size": is_.d},
    )  # fmt: skip
    with torch.device("meta"):
        whole = Qwen2_5OmniThinkerForConditionalGeneration(config)
    family = Qwen25Omni(config, MODEL.tokenizer, MODEL.family.reading.preprocessor, {})
    model = HookedAVModel(family, thinker_stock(whole), name=size)
    keys = {id(weight): key for key, weight in whole.state_dict(keep_vars=True).items()}
    assert len(keys) == is_.tensors and {weight.device.type for weight in whole.parameters()} == {"meta"}
    parts = (model.embed, model.unembed, model.ln_final, *model.blocks)
    consumed = {keys[id(weight)] for part in parts for weight in part.parameters()}
    assert len(consumed) == is_.decoder
    left = set(keys.values()) - consumed
    assert len(left) == 1007 and all(key.startswith(("model.audio_tower.", "model.visual.")) for key in left)
    assert {id(weight) for weight in model.parameters()} == set(keys)

    cfg, attn, mlp = model.cfg, model.blocks[-1].attn, model.blocks[0].mlp
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.n_key_value_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab, cfg.n_ctx) == (
        is_.layers, is_.d, is_.heads, is_.kv, 128, is_.mlp, is_.vocab, 32768,
    )  # fmt: skip
    shapes = {name: tuple(getattr(attn, name).shape) for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_O")}
    assert shapes == {
        "W_Q": (is_.heads, is_.d, 128), "W_K": (is_.kv, is_.d, 128), "W_V": (is_.kv, is_.d, 128),
        "W_O": (is_.heads, 128, is_.d), "b_Q": (is_.heads, 128), "b_K": (is_.kv, 128), "b_O": (is_.d,),
    }  # fmt: skip
    assert (mlp.W_gate.shape, mlp.W_in.shape, mlp.W_out.shape) == ((is_.d, is_.mlp), (is_.d, is_.mlp), (is_.mlp, is_.d))
    assert (model.W_E.shape, model.W_U.shape) == ((is_.vocab, is_.d), (is_.d, is_.vocab))


def test_weight_views_compute_what_the_stock_linears_do():
    block, x = MODEL.blocks[1], torch.randn(1, 5, 64)
    _, cache = MODEL.run_with_cache(prompt_of(MODEL, "text"), ["q", "k", "v", "z", "attn_out", "ln1.normalized"])
    x = cache["ln1.normalized", 1] * block.ln1.w
    for name in "qkv":
        weight, bias = getattr(block.attn, f"W_{name.upper()}"), getattr(block.attn, f"b_{name.upper()}")
        assert_equal(torch.einsum("bpm,hmd->bphd", x, weight) + bias, cache[name, 1])
    out = torch.einsum("bphd,hdm->bpm", cache["z", 1], block.attn.W_O) + block.attn.b_O
    assert_equal(out, cache["attn_out", 1])


def test_the_official_bounds_of_a_frames_area_hold_for_released_checkpoints():
    family = Qwen25Omni(MODEL.family.config, MODEL.tokenizer, MODEL.family.reading.preprocessor, {})
    released = HookedAVModel(family, MODEL.stock)
    tokens = released.prepare(clip_of(1, 1, 2.0, (64, 96)), "what ?").tokens
    assert len(tokens.video) == 140  # 280x392 pixels: 10 rows of 14
