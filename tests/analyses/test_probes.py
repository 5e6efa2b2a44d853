import builtins
import math

import pytest
import torch

from avlens import HookedAVModel
from avlens.analyses.probes import Features, linear_probes, probe_features
from avlens.datasets.synthetic import synthetic_clips
from avlens.errors import HookError, LayerError, MetricError, PositionError
from avlens.testing import tiny_clip, tiny_model


def made(n, seed=0, d=12, noise=0.3):
    """Features of which set `told` holds the label in layer 1 alone, and set `none` nowhere."""
    generator = torch.Generator().manual_seed(seed)
    labels = [i % 3 for i in range(n)]
    x = noise * torch.randn(2, 2, n, d, generator=generator)
    x[0, 1, range(n), labels] += 2
    return Features(x, ("told", "none"), (0, 1), "resid_post", {}), [f"label {label}" for label in labels]


def test_a_label_is_read_where_it_is_and_nowhere_else():
    features, labels = made(60)
    found = linear_probes(features, labels, folds=4, n_shuffles=2)
    assert float(found.accuracy[0, 1]) > 0.95 and float(found.selectivity[0, 1]) > 0.4
    assert all(float(found.accuracy[i, j]) < 0.6 for i, j in ((0, 0), (1, 0), (1, 1)))
    assert float(found.control.mean()) == pytest.approx(1 / 3, abs=0.15) and found.majority == pytest.approx(1 / 3)
    frame = found.to_frame()
    best = frame[(frame["set"] == "told") & (frame["layer"] == 1)].iloc[0]
    assert best["low"] <= best["accuracy"] <= best["high"] and best["clips"] == 60
    again = linear_probes(features, labels, folds=4, n_shuffles=2)
    assert torch.equal(again.right, found.right) and torch.equal(again.control, found.control)


def test_clips_of_one_group_are_never_split():
    """Vectors tell the group and not the label: alone they are remembered, in groups they are not."""
    generator = torch.Generator().manual_seed(1)
    groups = [i // 4 for i in range(48)]
    labels = [str(group % 2) for group in groups]
    x = torch.randn(12, 24, generator=generator)[groups] + 0.01 * torch.randn(48, 24, generator=generator)
    features = Features(x[None, None], ("all",), (0,), "z", {})
    alone = linear_probes(features, labels, folds=4, n_shuffles=0)
    kept = linear_probes(features, labels, groups=groups, folds=4, n_shuffles=0)
    assert float(alone.accuracy) > 0.95 and float(kept.accuracy) < 0.8
    assert kept.control.isnan().all() and kept.interval("all", 0).n_clusters == 12


def test_features_are_means_over_the_sets():
    model = tiny_model(n_layers=2)
    prompts = [model.prepare(tiny_clip(s, seed=i), "what ?") for i, s in enumerate((2.0, 3.0))]
    prompts.append(model.prepare(tiny_clip(2.0, video=False), "what ?"))
    found = probe_features(model, prompts)
    assert found.sets == ("video", "audio", "last") and found.x.shape == (3, 2, 3, 64)
    _, cache = model.run_with_cache(prompts[1], ["resid_post"])
    want = cache["resid_post", 1][0, prompts[1].tokens.audio.positions].mean(0)
    torch.testing.assert_close(found.x[1, 1, 1], want)
    assert found.x[0, :, 2].isnan().all() and not found.x[1].isnan().any()
    z = probe_features(model, prompts[:1], {"first": lambda tokens: tokens.at([0])}, site="z", layers=[1])
    assert z.x.shape == (1, 1, 1, model.cfg.n_heads * model.cfg.d_head) and z.layers == (1,)


def test_clips_without_the_tokens_are_left_out_and_counted():
    features, labels = made(40)
    features.x[0, :, :4] = torch.nan
    found = linear_probes(features, labels, folds=3, n_shuffles=0)
    assert (
        found.right[0, :, :4].isnan().all()
        and found.interval("told", 1).n == 36
        and found.interval("told", 1).n_missing == 4
    )


def test_audio_tokens_of_the_embedded_model_tell_the_sound():
    model = HookedAVModel.from_pretrained("avlens-tiny")
    samples = synthetic_clips(36, seed=8, blank=0, silent=0, matching=0)
    prompts = [model.prepare(sample.clip, "what do you see ?") for sample in samples]
    features = probe_features(model, prompts, {"audio": lambda tokens: tokens.audio}, layers=[2])
    rain = [str(sample.content.sound in ("bell", "drum", "siren")) for sample in samples]
    found = linear_probes(features, rain, folds=3, n_shuffles=1)
    assert float(found.accuracy) > 0.8 and float(found.selectivity) > 0.1


def test_refusals(monkeypatch):
    features, labels = made(12)
    model = tiny_model(n_layers=2)
    prompt = model.prepare(tiny_clip(1.0), "what ?")
    with pytest.raises(MetricError, match="fewer clips than there are folds"):
        linear_probes(features, labels, folds=5)
    with pytest.raises(MetricError, match="nothing to tell apart"):
        linear_probes(features, ["a"] * 12)
    with pytest.raises(MetricError, match="11 labels were given for 12 clips"):
        linear_probes(features, labels[:-1])
    with pytest.raises(HookError, match="no axis of positions"):
        probe_features(model, [prompt], site="pattern")
    with pytest.raises(MetricError, match="no prompts"):
        probe_features(model, [])
    with pytest.raises(PositionError, match="not yet generated"):
        probe_features(model, [prompt], {"x": lambda tokens: tokens.generated})
    with pytest.raises((LayerError, KeyError)):
        probe_features(model, [prompt], layers=[9])
    importing = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MetricError, match=r"avlens\[probes\]"):
        linear_probes(features, labels)
    assert not math.isnan(float(features.x.sum()))


def test_a_bar_is_shown_when_it_is_asked_for(capsys):
    features, labels = made(30)
    linear_probes(features, labels, folds=2, n_shuffles=0)
    assert capsys.readouterr().err == ""
    linear_probes(features, labels, folds=2, n_shuffles=0, progress=True)
    assert "probes: 100%" in capsys.readouterr().err
