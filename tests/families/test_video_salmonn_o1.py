"""video-SALMONN-o1 beside the original code's numbers on tiny random weights, and video-SALMONN 2 as its variant."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from avlens import Clip, HookedAVModel
from avlens.errors import CheckpointError, PromptError, UnsupportedSettingError
from avlens.families.video_salmonn_o1 import (
    _RENAMES,
    VideoSalmonnO1,
    VideoSalmonnO1Model,
    _configs,
    _released,
    _stock,
    _stretched,
)
from avlens.inputs import AVInputs, Media, Prompt
from avlens.testing import tiny_clip, tiny_model
from avlens.tokens import Modality, Segment, TokenMap
from tests.helpers import assert_equal, prompt_of

MODEL = tiny_model("video_salmonn_o1")
TWO = tiny_model("video_salmonn_o1", variant="video_salmonn_2")
GOLDEN = Path(__file__).parents[1] / "golden" / "video_salmonn_o1"
EXPECTED = load_file(GOLDEN / "expected.safetensors")
ENCODERS = {
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "whisper": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64},
    "qformer": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The golden checkpoint, with any tokenizer and the sizes that its config.json does not tell."""
    folder = tmp_path_factory.mktemp("golden")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder / name)
    (folder / "avlens.json").write_text(json.dumps(ENCODERS))
    MODEL.tokenizer.save_pretrained(folder)
    return HookedAVModel.from_pretrained(folder)


def golden_inputs(model):
    """Two frames and 33 s of sound, which are two pieces of 30 s."""
    ids = EXPECTED["ids"][0]
    hole = ids.tolist().index(-200)
    clip = Clip(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 2 / 33, torch.zeros(33 * 16000), 16000)
    medium = model.family.interleave(EXPECTED["img"], clip, 0)
    words = [
        TokenMap.of(part, [str(i) for i in part.tolist()], Modality.TEXT, Segment.QUESTION)
        for part in (ids[:hole], ids[hole + 1 :])
    ]
    tokens = TokenMap.join([words[0], medium.tokens, words[1]])
    kinds = {Modality.VIDEO: (Modality.VIDEO, Modality.SEPARATOR), Modality.AUDIO: (Modality.AUDIO,)}
    media = []
    for kind, tensors in medium.media:
        where = torch.isin(tokens.modality, torch.tensor(kinds[kind])).nonzero()[:, 0]
        media.append(Media(kind, {**tensors, **({"mel": EXPECTED["mel"]} if "mel" in tensors else {})}, where, 0))
    positions = torch.arange(len(tokens)).expand(3, -1)
    return AVInputs((Prompt(tokens.ids, tokens, tuple(media), positions, len(tokens)),), model.family.stock_kwargs)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_embeddings_and_logits_equal_the_original_codes(original, attn):
    logits, cache = original.run_with_cache(golden_inputs(original), ["hook_embed", "resid_pre"], attn=attn)
    assert_equal(cache["hook_embed"], EXPECTED["emb"], 2e-6)
    assert_equal(cache["resid_pre", 1], EXPECTED["resid_pre_1"], 2e-6)
    assert_equal(logits, EXPECTED["logits"], 2e-6)


def test_patterns_equal_the_original_codes(original):
    _, cache = original.run_with_cache(golden_inputs(original), ["pattern"])
    assert_equal(cache["pattern", 0][:, :, -1], EXPECTED["pattern_0_last_row"], 1e-7)


def test_a_frame_is_thirteen_rows_with_a_separator_after_each(original):
    tokens = golden_inputs(original).tokens
    assert len(tokens) == 671 and len(tokens.video) == 2 * 169 and len(tokens.separator) == 2 * 13
    first = tokens.modality[int(tokens.video.positions[0]) :][:14]
    assert first.tolist() == [Modality.VIDEO] * 13 + [Modality.SEPARATOR]
    assert (tokens.ids[tokens.media.positions] == -1).all()


# Where the sound goes.


def test_stretching_repeats_nearest_neighbours():
    assert _stretched(5, 3).tolist() == [0, 0, 1, 2, 3, 4]  # 6 places: floor(i * 5 / 6)
    assert _stretched(6, 3).tolist() == [0, 1, 2, 3, 4, 5]
    for count, n_frames in ((150, 7), (300, 11), (60, 13)):
        index = _stretched(count, n_frames)
        slow = F.interpolate(torch.arange(count)[None, None].double(), size=len(index), mode="nearest")[0, 0].long()
        assert len(index) % n_frames == 0 and torch.equal(index, slow)


def test_the_token_map_tells_which_seconds_an_audio_token_really_holds():
    tokens = MODEL.prepare(tiny_clip(5.0, fps=0.8), "what ?").tokens  # four frames of 1.25 s
    audio = tokens.to_frame().loc[tokens.audio.positions]
    # 150 tokens of 0.2 s are stretched to 152, 38 to a frame: the second frame of four is followed by sound from 7.4 s on.
    assert len(audio) == 152
    assert abs(float(audio.start.iloc[38]) - 0.2 * (38 * 150 // 152)) < 1e-9
    assert list(audio.is_pad) == [start >= 5.0 - 1e-9 for start in audio.start]
    assert audio.nominal_start.isna().all() and (audio.end - audio.start - 0.2).abs().max() < 1e-9
    frames = tokens.to_frame().loc[tokens.video.positions]
    assert list(frames.start.unique()) == [0.0, 1.25, 2.5, 3.75]


def test_sound_beyond_fifty_tokens_a_second_comes_after_the_last_frame():
    tokens = MODEL.prepare(tiny_clip(2.0, fps=1.0), "what ?").tokens
    runs = tokens.to_frame().loc[tokens.audio.positions]
    assert len(runs) == 150 and list(runs.audio_frame) == list(range(150))
    after = tokens.audio.positions > tokens.video.positions.max()
    assert int(after.sum()) == 50 + 50


def test_moving_a_window_of_sound_moves_exactly_its_tokens():
    clip = tiny_clip(4.0)
    wave = clip.waveform.clone()
    wave[int(1.6 * 16000) : int(1.8 * 16000)] = 0
    embeds = [
        MODEL.run_with_cache(MODEL.prepare(Clip(clip.frames, 2.0, w, 16000), "what ?"), "hook_embed")[1]["hook_embed"][
            0
        ]
        for w in (clip.waveform, wave)
    ]
    tokens = MODEL.prepare(clip, "what ?").tokens
    moved = (embeds[0] - embeds[1]).abs().amax(-1)
    near = tokens.audio & tokens.seconds(1.6, 1.8)
    assert set(near) <= set(moved.topk(2 * len(near)).indices.tolist())
    assert (moved[tokens.video.positions] == 0).all()


def test_a_video_without_sound_is_given_silence_as_in_the_released_code():
    tokens = MODEL.prepare(tiny_clip(3.0, audio=False), "what ?").tokens
    assert len(tokens.audio) == 150 and tokens.is_pad[tokens.audio.positions].all()


def test_the_variant_pools_after_the_projector_and_hears_half_seconds():
    tokens = TWO.prepare(tiny_clip(3.0, fps=1.0), "what ?").tokens
    assert len(tokens.audio) == 60 and TWO.family.sampling == {"fps": 1.0, "max_frames": 30}
    pixels = torch.randn(2, 3, 84, 84)
    for model, first in ((MODEL, True), (TWO, False)):
        tower = model.stock.whole.vision
        seen = tower.siglip(pixels, output_hidden_states=True).hidden_states[-1]

        def pool(x):
            return F.max_pool2d(x.transpose(1, 2).unflatten(2, (6, 6)), 2).flatten(2).transpose(1, 2)

        wanted = tower.projector(pool(seen)) if first else pool(tower.projector(seen))
        got = tower(pixels).unflatten(1, (3, 4))
        assert_equal(got[:, :, :3].flatten(1, 2), wanted)
        assert_equal(got[:, :, 3], tower.newline.expand(2, 3, -1))


def test_what_it_cannot_read_is_refused_with_what_to_do():
    with pytest.raises(PromptError, match="reads clips, not single images. Pass Clip"):
        prompt_of(MODEL, "image")
    with pytest.raises(PromptError, match=r"has 70 frames, .* at most 60.*max_frames=60"):
        MODEL.prepare(tiny_clip(7, fps=10, size=(8, 8)), "what ?")
    with pytest.raises(PromptError, match=r"lasts 31.0 s.*clip.cut\(0, 30\)"):
        MODEL.prepare(tiny_clip(31, video=False), "what ?")
    with pytest.raises(PromptError, match="transformers has no video-SALMONN-o1"):
        prompt_of(MODEL, "text").hf_kwargs()


# Checkpoints.


@pytest.mark.parametrize("model", [MODEL, TWO], ids=["o1", "2"])
def test_a_saved_model_has_the_released_keys_and_loads_with_equal_logits(tmp_path, model):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    golden = {key for key in load_file(GOLDEN / "model.safetensors") if not key.endswith("position_ids")}
    assert set(state) == golden
    inputs = model.prepare(tiny_clip(2), "what do you hear ?")
    again = HookedAVModel.from_pretrained(tmp_path)
    assert torch.equal(again(inputs), model(inputs))
    assert torch.equal(again(again.prepare(tiny_clip(2), "what do you hear ?")), model(inputs))
    save_file(state | {"speech_encoder.x": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 unknown \['speech"):
        HookedAVModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("mm_newline_position", "frame"), ("mm_projector_type", "linear"), ("rope_scaling", {"type": "yarn"}), ("beats", 1),
     ("multi_frame_projector", True)],
)  # fmt: skip
def test_a_setting_that_changes_the_forward_pass_is_refused_by_name(setting, value):
    config = json.loads((GOLDEN / "config.json").read_text())
    VideoSalmonnO1.check(config)
    with pytest.raises(UnsupportedSettingError, match=rf"sets {setting} = "):
        VideoSalmonnO1.check(config | {setting: value})


def test_every_key_of_the_released_size_is_consumed_without_memory():
    raw = json.loads((GOLDEN / "config.json").read_text()) | {
        "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "vocab_size": 152064,
    }  # fmt: skip
    with torch.device("meta"):
        whole = VideoSalmonnO1Model(_configs(raw, {}))
    model = HookedAVModel(VideoSalmonnO1(raw, MODEL.tokenizer, {}), _stock(whole))
    state = whole.state_dict()
    assert {weight.device.type for weight in state.values()} == {"meta"}
    released = {_released(key): tuple(weight.shape) for key, weight in state.items()}
    # Decoder; SigLIP's 26 layers, patches, positions and norm, projector and separator; Whisper; Q-Former and what follows.
    assert len(released) == (12 * 28 + 3) + (16 * 26 + 5 + 4 + 1) + (15 * 32 + 7 + 2) + (26 * 2 + 5 + 4)
    tower = "model.vision_tower.vision_tower.vision_model."
    assert released[f"{tower}encoder.layers.25.mlp.fc1.weight"] == (4304, 1152)
    assert released[f"{tower}embeddings.position_embedding.weight"] == (729, 1152)
    assert released["speech_Qformer.bert.encoder.layer.1.crossattention.self.key.weight"] == (768, 1280)
    assert released["final_linear.2.weight"] == (3584, 3584)
    renamed = set()
    for key in released:
        hits = [(pattern, new) for pattern, new in _RENAMES.items() if re.search(pattern, key)]
        renamed.add(re.sub(*hits[0], key) if hits else key)
    assert renamed == set(state)
    assert {id(weight) for weight in model.parameters()} == {id(weight) for weight in whole.parameters()}
