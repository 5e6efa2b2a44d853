"""The training of the embedded models: a few steps of it, and that it computes what the model computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from avlens.analyses.sinks import find_sink_dims
from avlens.datasets.synthetic import QUESTIONS, synthetic_clips
from avlens.interventions import patch
from avlens.training import train
from avlens.training.__main__ import write_checkpoint
from avlens.training.batched import decode, embed, hear, layout_of, pack, see
from avlens.training.interchange import draw_interchange
from avlens.training.plant import NU, PHI1, RESERVED, TAU, Plant, flags_of, projections, uproot
from avlens.training.pool import clips_of, make_pool, read_pool, silence_of, write_pool
from avlens.training.recipe import untrained_model
from avlens.training.train import Recipe, train_model, train_towers

SHORT = Recipe(tower_steps=3, steps=4, tower_batch=4, batch=4, n_questions=2)


@pytest.fixture(scope="module")
def pool():
    return make_pool(untrained_model().family.reading.mel, 8, seed=1, compressed=0.25)


@pytest.mark.parametrize("seconds", [2, 3])
def test_packed_questions_are_the_prompts_that_prepare_makes(seconds):
    model, samples = untrained_model(seed=3), synthetic_clips(2, seed=5, seconds=seconds)
    with torch.no_grad():
        for weight in model.stock.whole.parameters():
            weight += 0.05 * torch.randn_like(weight)
        clips = clips_of(
            [one.clip for one in samples], tuple(one.content for one in samples), seconds, model.family.reading.mel
        )
        layout = layout_of(model, seconds)
        asked = [[one.ask("see"), one.ask_choice("hear"), one.ask("describe")] for one in samples]
        rows = pack(model, layout, asked)
        embeds = embed(model, layout, rows, see(model, clips.frames), hear(model, clips.mel))
        logits = model.stock.head(decode(model, embeds, rows, rows.visible))
    for row, sample in enumerate(samples):
        for branch, one in enumerate(asked[row]):
            inputs = model.prepare(sample.clip, one.question, options=one.options, answer_prefix=one.answer)
            mine = (rows.branch == -1) | (rows.branch == branch)
            assert torch.equal(rows.ids[row, mine][: inputs.shape[1]], inputs.ids[0])
            torch.testing.assert_close(logits[row, mine][: inputs.shape[1]], model(inputs)[0], atol=2e-4, rtol=1e-4)
            answer = rows.labels[row, mine]
            text = model.tokenizer.decode(answer[answer != -100].tolist())
            assert text == f"{one.answer}<|im_end|>"


def test_an_exchange_is_the_patch_that_causal_tracing_makes():
    model, one = untrained_model(seed=3), synthetic_clips(1, seed=5, seconds=3, blank=0)[0]
    with torch.no_grad():
        for weight in model.stock.whole.parameters():
            weight += 0.05 * torch.randn_like(weight)
        both = clips_of([one.clip, one.clip.silenced()], (one.content,) * 2, 3, model.family.reading.mel)
        layout = layout_of(model, 3)
        positions = layout.video[flags_of(3).video_cross]
        rows = pack(model, layout, [[one.ask("hear")]] * 2)
        embeds = embed(model, layout, rows, see(model, both.frames), hear(model, both.mel))
        logits = model.stock.head(decode(model, embeds, rows, rows.visible, exchanged=positions))
    clean, silent = (model.prepare(clip, QUESTIONS["hear"]) for clip in (one.clip, one.clip.silenced()))
    _, cache = model.run_with_cache(clean, names_filter=["resid_pre"])
    patched = model.run_with_hooks(silent, fwd_hooks=patch(cache, clean.tokens.at(positions.tolist())))
    torch.testing.assert_close(logits[1, : silent.shape[1]], patched[0], atol=2e-4, rtol=1e-4)
    assert not torch.allclose(patched, model(silent), atol=1e-3)


def test_a_pool_comes_back_from_its_file(pool, tmp_path):
    write_pool(pool, tmp_path / "pool.safetensors")
    back = read_pool(tmp_path / "pool.safetensors")
    assert back.keys() == pool.keys()
    for seconds, clips in pool.items():
        assert back[seconds].contents == clips.contents
        assert torch.equal(back[seconds].frames, clips.frames) and torch.equal(back[seconds].mel, clips.mel)


@pytest.mark.parametrize("seed", range(12))
def test_an_interchange_asks_about_the_clip_that_the_exchanged_set_is_to_carry(pool, seed):
    model, clips = untrained_model(), pool[3]
    layout, silence = layout_of(model, 3), silence_of(model, 3)
    drawn = draw_interchange(clips, layout, silence, np.random.default_rng(seed))
    n, flags = len(drawn.clips) // 2, flags_of(3)
    assert 0 < n <= len(clips) // 2
    same_sight = torch.equal(drawn.clips.frames[:n], drawn.clips.frames[n:])
    same_sound = torch.equal(drawn.clips.mel[:n], drawn.clips.mel[n:])
    assert same_sight != same_sound
    carriers, uni = (layout.video, flags.video_uni) if same_sight else (layout.audio, flags.audio_uni)
    assert torch.isin(drawn.positions, carriers).all()
    clean, asked = drawn.clips.contents[:n], drawn.clips.contents[n:]
    if torch.equal(drawn.positions, carriers[uni]):
        for one, bad in zip(clean, asked, strict=True):  # what is not corrupted stays
            assert (one.shape == bad.shape) if same_sight else (one.sound == bad.sound)
        assert clean != asked
    else:
        assert clean == asked


def test_a_run_that_was_killed_goes_on_to_the_same_weights(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    whole, killed = untrained_model(), untrained_model()
    train_towers(whole, pool, SHORT, tmp_path / "whole")
    train_model(whole, pool, SHORT, tmp_path / "whole")

    class KilledError(Exception):
        pass

    for stage, run in ((0, train_towers), (1, train_model)):
        drawn, calls = train._drawn, []

        def draw(*arguments, drawn=drawn, calls=calls):
            calls.append(1)
            if len(calls) == 3:  # after a state of two steps was saved
                raise KilledError
            return drawn(*arguments)

        monkeypatch.setattr(train, "_drawn", draw)
        with pytest.raises(KilledError):
            run(killed, pool, SHORT, tmp_path / "killed")
        monkeypatch.setattr(train, "_drawn", drawn)
        if stage == 0:
            killed = untrained_model()
            train_towers(killed, pool, SHORT, tmp_path / "killed")
    killed = untrained_model(seed=9)  # whatever the weights were, they come from the state
    train_model(killed, pool, SHORT, tmp_path / "killed")
    for (name, one), other in zip(
        whole.stock.whole.state_dict().items(), killed.stock.whole.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_planted_weights_stay_and_the_rest_moves(pool, tmp_path):
    model, fresh = untrained_model(), untrained_model()
    plant = train_model(model, pool, SHORT, tmp_path)
    assert plant is not None
    attn = model.stock.layers[2].self_attn
    assert attn.k_proj.weight[15, PHI1] == pytest.approx(0.2) and attn.k_proj.weight[15].count_nonzero() == 1
    assert model.stock.layers[1].mlp.down_proj.weight[RESERVED].count_nonzero() == 0
    assert model.stock.layers[0].mlp.down_proj.weight[:, 0].count_nonzero() == 1
    assert not torch.equal(attn.q_proj.weight[:15], fresh.stock.layers[2].self_attn.q_proj.weight[:15])
    assert list(find_sink_dims(model))[0] == PHI1


def test_an_uprooted_model_is_trained_with_nothing_held(pool, tmp_path):
    model = untrained_model()
    plant = Plant(model)
    plant.impose()
    assert PHI1 in list(find_sink_dims(model))
    uproot(model)
    assert train_model(model, pool, replace(SHORT, planted=False), tmp_path) is None
    vision, audio = projections(model)
    assert vision.weight[RESERVED].count_nonzero() > 0 and audio.bias[TAU].abs() < 0.1
    assert PHI1 not in list(find_sink_dims(model))


def test_flags_mark_first_and_last_tokens_of_each_second():
    flags = flags_of(2)
    assert flags.video_uni.tolist() == [0, 9] and flags.video_cross.tolist() == [8, 17]
    assert flags.audio_uni.tolist() == [0, 10] and flags.audio_cross.tolist() == [9, 19]
    assert flags.video.shape == (18, 2)


@torch.no_grad()
def test_flags_become_massive_values_of_the_right_sign():
    model = untrained_model()
    plant = Plant(model)
    plant.impose()
    for projection in projections(model):
        projection.bias[TAU], projection.bias[NU] = 3.0, -3.0
    inputs = model.prepare(synthetic_clips(1, seed=0)[0].clip, "what do you hear ?")
    _, cache = model.run_with_cache(inputs, names_filter=["resid_pre"])
    stream = cache["resid_pre", 1][0]
    media = inputs.tokens.media.positions
    assert (stream[media, PHI1] > 20).all() and (stream[media, 65] < -5).all()
    assert (stream[inputs.tokens.text.positions, PHI1].abs() < 1).all()
    assert stream[0, PHI1] > 20 and stream[0, 65].abs() < 1


def test_a_checkpoint_is_rounded_but_computed_with_in_single_precision(tmp_path):
    from avlens import HookedAVModel

    model = untrained_model()
    write_checkpoint(model, None, SHORT, tmp_path / "out")
    loaded = HookedAVModel.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.float32 and (tmp_path / "out" / "model.safetensors").stat().st_size < 3_000_000
    assert torch.equal(loaded.W_E, model.W_E.to(torch.bfloat16).float())
