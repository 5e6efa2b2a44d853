"""video-SALMONN 2+ beside the original code's numbers on tiny random weights: encoders, decoder, both position schemes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from avlens import Clip, HookedAVModel
from avlens.errors import CheckpointError, PromptError, UnsupportedSettingError
from avlens.families.video_salmonn2_plus import (
    _RENAMES,
    VideoSalmonn2Plus,
    VideoSalmonn2PlusModel,
    _configs,
    _released,
    _stock,
    released_positions,
)
from avlens.inputs import AVInputs, Media, Prompt
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality, Segment, TokenMap
from tests.helpers import assert_equal, prompt_of

MODEL = tiny_model("video_salmonn2_plus")
GOLDEN = Path(__file__).parents[1] / "golden" / "video_salmonn2_plus"
EXPECTED = load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The golden checkpoint, with any tokenizer."""
    folder = tmp_path_factory.mktemp("golden")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder / name)
    MODEL.tokenizer.save_pretrained(folder)
    return HookedAVModel.from_pretrained(folder)


def golden_inputs(model, positions):
    ids, raw = EXPECTED["ids"][0], model.family.raw
    modality = torch.zeros_like(ids)
    modality[ids == raw["video_token_id"]] = int(Modality.VIDEO)
    modality[ids == raw["audio_token_id"]] = int(Modality.AUDIO)
    tokens = TokenMap.of(ids, [str(i) for i in ids.tolist()], Modality.TEXT, Segment.QUESTION)
    sight = {"pixels": EXPECTED["pix"], "grid": EXPECTED["grid"][0]}
    media = (
        Media(Modality.VIDEO, sight, (modality == Modality.VIDEO).nonzero()[:, 0], 0),
        Media(Modality.AUDIO, {"mel": EXPECTED["mel"]}, (modality == Modality.AUDIO).nonzero()[:, 0], 0),
    )
    positions = EXPECTED[positions][:, 0]
    prompt = Prompt(ids, replace(tokens, modality=modality), media, positions, int(positions.max()) + 1)
    return AVInputs((prompt,), model.family.stock_kwargs)


# The original code's numbers.


def test_encoders_equal_the_original_codes(original):
    _, cache = original.run_with_cache(golden_inputs(original, "pos_tr"), ["hook_audio_embed", "hook_video_embed"])
    assert_equal(cache["hook_audio_embed"], EXPECTED["aud"], 2e-6)
    assert_equal(cache["hook_video_embed"][0], EXPECTED["vis"], 2e-6)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize(("positions", "logits"), [("pos_inf", "logits_inf"), ("pos_tr", "logits_tr")])
def test_logits_equal_the_original_codes_under_both_schemes(original, attn, positions, logits):
    inputs = golden_inputs(original, positions)
    got, cache = original.run_with_cache(inputs, ["hook_embed"], attn=attn)
    assert_equal(cache["hook_embed"], EXPECTED["emb"], 2e-6)
    assert_equal(got, EXPECTED[logits], 2e-6)


def test_residuals_and_patterns_equal_the_original_codes(original):
    _, cache = original.run_with_cache(golden_inputs(original, "pos_tr"), ["resid_pre", "pattern"])
    assert_equal(cache["resid_pre", 1], EXPECTED["resid_pre_1"], 2e-6)
    assert_equal(cache["pattern", 0][:, :, -1], EXPECTED["pattern_0_last_row"], 1e-7)


def test_generated_tokens_equal_the_original_codes(original):
    assert torch.equal(original.generate(golden_inputs(original, "pos_inf"), 4).tokens, EXPECTED["gen"][:, -4:])


def test_released_positions_equal_the_original_codes(original):
    grid = EXPECTED["grid"][0] // torch.tensor([1, 2, 2])
    inputs = golden_inputs(original, "pos_inf")
    assert torch.equal(released_positions(inputs.tokens.modality, [(Modality.VIDEO, grid)]), EXPECTED["pos_inf"][:, 0])


# Prompts. The golden clip: 5 s, one pair of frames a second, 3 x 5 patches.

CLIP = Clip(
    frames=torch.randint(0, 256, (10, 3, 84, 140), generator=torch.Generator().manual_seed(0), dtype=torch.uint8), fps=2.0,
    waveform=torch.randn(5 * 16000, generator=torch.Generator().manual_seed(0)) / 10, sample_rate=16000,
)  # fmt: skip


@pytest.mark.parametrize(("scheme", "positions"), [("released", "pos_inf"), ("trained", "pos_tr")])
def test_a_clip_of_the_golden_shape_gets_the_golden_positions(scheme, positions):
    inputs = MODEL.prepare(CLIP, "what ?", positions=scheme, min_pixels=784, max_pixels=84 * 140)
    media = (inputs.tokens.modality == Modality.AUDIO) | (inputs.tokens.modality == Modality.VIDEO)
    ids, raw = EXPECTED["ids"][0], json.loads((GOLDEN / "config.json").read_text())
    theirs = (ids == raw["video_token_id"]) | (ids == raw["audio_token_id"])
    first, wanted = int(media.nonzero()[0]), int(theirs.nonzero()[0])
    block = int(media.sum())
    assert block == 135
    ours = inputs.positions[:, 0, first : first + block + 3] - inputs.positions[0, 0, first]
    golden = EXPECTED[positions][:, 0, wanted : wanted + block + 3]
    assert torch.equal(ours, golden - golden[0, 0])


def test_audio_follows_the_frames_of_its_time_and_the_rest_comes_last():
    tokens = MODEL.prepare(CLIP, "what ?", max_pixels=84 * 140).tokens
    runs = tokens.chunk[tokens.media.positions].unique_consecutive(return_counts=True)[1].tolist()
    assert runs == [15, 2, 15, 2, 15, 2, 15, 2, 15, 52]
    audio = tokens.to_frame().loc[tokens.audio.positions]
    assert list(audio.audio_frame) == list(range(60)) and list(audio.start) == [0.5 * k for k in range(60)]
    assert list(audio.is_pad) == [k >= 10 for k in range(60)]
    assert audio.nominal_start.isna().all()
    video = tokens.to_frame().loc[tokens.video.positions]
    assert list(video.start.unique()) == [0, 1, 2, 3, 4] and video.end.max() == 5


def test_a_sound_of_two_pieces_keeps_its_time():
    clip = Clip(CLIP.frames, 10 / 40, torch.randn(40 * 16000) / 10, 16000)
    tokens = MODEL.prepare(clip, "what ?", positions="trained", max_pixels=784).tokens
    audio = tokens.to_frame().loc[tokens.audio.positions]
    assert len(audio) == 120 and list(audio.start) == [0.5 * k for k in range(120)]
    assert list(audio.is_pad) == [k >= 80 for k in range(120)]
    assert (audio.nominal_start == audio.start).all()
    # Each pair of frames is shown for 8 s, after which 16 audio tokens come.
    runs = tokens.chunk[tokens.media.positions].unique_consecutive(return_counts=True)[1].tolist()
    assert runs[1::2] == [16, 16, 16, 16, 56]


def test_a_sound_shorter_than_its_video_never_gives_more_tokens_than_it_has():
    clip = Clip(CLIP.frames, 10 / 80, torch.randn(16000) / 10, 16000)
    tokens = MODEL.prepare(clip, "what ?", max_pixels=784).tokens
    assert len(tokens.audio) == 60
    assert MODEL(MODEL.prepare(clip, "what ?", max_pixels=784)).isfinite().all()


def test_fewer_frames_get_a_larger_area_each(monkeypatch):
    monkeypatch.setattr("avlens.families.video_salmonn2_plus.VIDEO_PIXELS", 610)  # 61250 would take half a gigabyte
    for n_frames, bound in ((10, 0.95 * 76.8 * 610), (40, 0.95 * 19.2 * 610)):
        clip = Clip(torch.zeros(n_frames, 3, 300, 300, dtype=torch.uint8), 2.0)
        side = int(MODEL.prepare(clip, "what ?").prompt.media[0].tensors["grid"][1]) * 14
        assert side**2 <= bound < (side + 28) ** 2


def test_every_kind_of_prompt_runs_under_both_schemes():
    for kind in ("video_and_audio", "audio", "video", "image", "interleaved"):
        assert MODEL(prompt_of(MODEL, kind)).isfinite().all()
    both = [MODEL.prepare([CLIP, "and", CLIP], "what ?", max_pixels=784, positions=s) for s in ("released", "trained")]
    assert not torch.equal(both[0].positions, both[1].positions)
    assert both[0].positions.shape[-1] == len(both[0].tokens)


def test_there_is_no_stock_model_and_no_other_scheme():
    with pytest.raises(PromptError, match="transformers has no video-SALMONN"):
        prompt_of(MODEL, "text").hf_kwargs()
    with pytest.raises(PromptError, match="no position ids 'trained'. It has released"):
        tiny_model().prepare(CLIP, "what ?", positions="trained")
    with pytest.raises(PromptError, match=r"has 800 frames, .* at most 768.*max_frames=768"):
        MODEL.prepare(Clip(torch.zeros(800, 3, 28, 28, dtype=torch.uint8), 10.0), "what ?")


# Checkpoints.


def test_a_saved_model_has_the_released_keys_and_loads_with_equal_logits(tmp_path):
    MODEL.save_pretrained(tmp_path)
    golden = set(load_file(GOLDEN / "model.safetensors"))
    state = load_file(tmp_path / "model.safetensors")
    assert set(state) == {key for key in golden if not key.endswith("position_ids")}
    inputs = MODEL.prepare(tiny_clip(2), "what do you hear ?")
    assert torch.equal(HookedAVModel.from_pretrained(tmp_path)(inputs), MODEL(inputs))
    save_file(state | {"audio.beats.weight": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 unknown \['audio.beats.weight'\]"):
        HookedAVModel.from_pretrained(tmp_path)
    key = "audio.qformer.bert.encoder.layer.1.crossattention.self.key.weight"
    save_file({k: v for k, v in state.items() if k != key}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing \['audio.qformer.encoder.layer.1.crossattention"):
        HookedAVModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("", "rope_scaling", {"type": "yarn", "factor": 4.0, "mrope_section": [4, 2, 2]}),
        ("", "use_sliding_window", True),
        ("", "logit_softcap", 30.0),
        ("vision_config", "register_tokens", 4),
        ("audio_config", "beats_config", {}),
        ("audio_config.qformer_config", "query_length", 2),
    ],
)
def test_a_setting_that_changes_the_forward_pass_is_refused_by_name(section, setting, value):
    config = json.loads((GOLDEN / "config.json").read_text())
    VideoSalmonn2Plus.check(config)
    at = config
    for name in section.split(".") if section else ():
        at = at[name]
    at[setting] = value
    full = f"{section}.{setting}" if section else setting
    with pytest.raises(UnsupportedSettingError, match=rf"sets {full} = "):
        VideoSalmonn2Plus.check(config)


def test_plain_qwen2_5_vl_is_not_taken_for_it():
    config = json.loads((GOLDEN / "config.json").read_text())
    assert VideoSalmonn2Plus.matches(config)
    del config["audio_config"]
    assert not VideoSalmonn2Plus.matches(config)


RELEASED = {
    "7B": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064},
    "3B": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
           "intermediate_size": 11008, "vocab_size": 151936},
}  # fmt: skip


@pytest.mark.parametrize("size", RELEASED)
def test_every_key_of_the_released_sizes_is_consumed_without_memory(size):
    raw = json.loads((GOLDEN / "config.json").read_text()) | RELEASED[size]
    raw["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
    raw["vision_config"] |= {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": raw["hidden_size"],
        "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    raw["audio_config"] |= {
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
    }
    raw["audio_config"]["qformer_config"] |= {
        "hidden_size": 3072, "num_attention_heads": 12, "intermediate_size": 12288, "encoder_width": 1280,
    }  # fmt: skip
    with torch.device("meta"):
        whole = VideoSalmonn2PlusModel(_configs(raw))
    model = HookedAVModel(VideoSalmonn2Plus(raw, MODEL.tokenizer, {}, {}), _stock(whole), name=size)
    state = whole.state_dict()
    assert {weight.device.type for weight in state.values()} == {"meta"}
    released = {_released(key): tuple(weight.shape) for key, weight in state.items()}
    layers = raw["num_hidden_layers"]
    # 12 tensors a block; 12 and 5 of vision; 15 and 7 of Whisper; 26 a layer, norm, query and projection of the Q-Former.
    assert len(released) == (12 * layers + 3) + (12 * 32 + 6) + (15 * 32 + 7) + (26 * 2 + 5)
    assert released["audio.qformer.bert.encoder.layer.1.crossattention.self.key.weight"] == (3072, 1280)
    assert released["visual.blocks.31.attn.qkv.weight"] == (3840, 1280)
    assert released["audio.layers.31.fc1.weight"] == (5120, 1280)
    assert released["audio.audio_proj.weight"] == (raw["hidden_size"], 3072)
    renamed = set()
    for key in released:
        hits = [(pattern, new) for pattern, new in _RENAMES.items() if re.search(pattern, key)]
        renamed.add(re.sub(*hits[0], key) if hits else key)
    assert renamed == set(state)
    assert {id(weight) for weight in model.parameters()} == {id(weight) for weight in whole.parameters()}
    assert model.blocks[0].attn.W_Q.shape == (raw["num_attention_heads"], raw["hidden_size"], 128)
