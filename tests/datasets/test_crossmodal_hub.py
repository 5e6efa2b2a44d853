"""The released records of kaistmm/crossmodal-hub, read from the checkout that AVLENS_CROSSMODAL_HUB names, give the published
numbers, and those that were computed from them once. The format itself is tested on records made up here."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from avlens.analyses.dominance import ModalityDominance, split_sinks
from avlens.analyses.selection import dominant_modality
from avlens.datasets.crossmodal_hub import read_history, read_prompts, read_results, read_sounding_chunks
from avlens.errors import DatasetError
from avlens.metrics.effects import bootstrap_mean, ratio_of_sums
from avlens.samples import open_clip
from avlens.tokens import Modality, Segment, TokenMap

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "crossmodal_hub_splits.json").read_text())
CASES = {"people": ("people_case_2", "v", Modality.VIDEO), "sports": ("sports_case_1", "a", Modality.AUDIO)}


@pytest.fixture(scope="module")
def hub():
    if "AVLENS_CROSSMODAL_HUB" not in os.environ:
        pytest.skip("AVLENS_CROSSMODAL_HUB names no checkout of kaistmm/crossmodal-hub")
    return Path(os.environ["AVLENS_CROSSMODAL_HUB"])


def traced(hub, case):
    folder = hub / "exp/causal_tracing/step2" / case / "cross_modal_sinkk_divide_2"
    return read_results(folder / f"before_attn_layer0_window50{case}_small.json")


def effects(results):
    clean = results["restored_correct_word_prob"] - results["corrupt_correct_word_prob"]
    corrupt = results["corrupt_corrupt_word_prob"] - results["restored_corrupt_word_prob"]
    return 100 * clean.to_numpy(), 100 * corrupt.to_numpy()


def totals(results):
    clean = results["correct_correct_word_prob"] - results["corrupt_correct_word_prob"]
    corrupt = results["corrupt_corrupt_word_prob"] - results["correct_corrupt_word_prob"]
    return 100 * clean.to_numpy(), 100 * corrupt.to_numpy()


def full_step_2(hub, case):
    records = [sample.record | {"id": sample.id} for sample in read_prompts(prompts(hub, f"step2/{case}"))]
    return pd.DataFrame(records).set_index("id")


def prompts(hub, name):
    return hub / "json_files/causal_tracing" / f"{name}.json"


def histories(hub):
    for clip, golden in GOLDEN.items():
        folder = hub / "exp/causal_tracing/step1" / golden["case"] / "av/history/k_divde_2"
        yield clip, golden, read_history(folder / f"{clip}_history.json", tokens_per_grid=golden["hw"])


L1 = {
    "people": (8.106358618242666, 6.286166161298752, 8299.2, (2.35, 14.60), (1.09, 12.52), (58.42, 33.78), 2),
    "sports": (2.625792685430497, 7.1091558039188385, 1954.4, (0.05, 7.02), (1.57, 13.54), (91.64, 40.10), 1),
}


@pytest.mark.parametrize("case", L1)
def test_effects_of_the_small_runs(hub, case):
    ie_clean, ie_corrupt, n_patched, ends_clean, ends_corrupt, te, flips = L1[case]
    results = traced(hub, case)
    means = [bootstrap_mean(values) for values in effects(results)]
    assert [mean.estimate for mean in means] == [pytest.approx(ie_clean, abs=1e-9), pytest.approx(ie_corrupt, abs=1e-9)]
    for mean, ends in zip(means, (ends_clean, ends_corrupt), strict=True):
        assert [mean.low, mean.high] == [pytest.approx(ends[0], abs=0.3), pytest.approx(ends[1], abs=0.3)]
    assert results["layerlist_len"].mean() == pytest.approx(n_patched, abs=1e-9)
    assert [values.mean() for values in totals(results)] == [pytest.approx(total, abs=0.006) for total in te]
    assert int((results["restored_pred"] == results["correct_pred"]).sum()) == flips
    share = ratio_of_sums(effects(results)[0], totals(results)[0])
    assert share.estimate == pytest.approx(ie_clean / te[0], abs=1e-4) and share.low < share.estimate < share.high


L2 = {
    "people": (349, 63.676, 35.192, (0.7248, 0.0788, 0.0881, 0.4307)),
    "sports": (548, 85.083, 49.173, (0.9320, 0.0125, 0.0811, 0.5043)),
}


@pytest.mark.parametrize("case", L2)
def test_total_effects_of_the_full_files(hub, case):
    n, te_clean, te_corrupt, means = L2[case]
    full = full_step_2(hub, case)
    clean, corrupt = totals(full)
    assert len(full) == n
    assert (clean.mean(), corrupt.mean()) == (pytest.approx(te_clean, abs=6e-4), pytest.approx(te_corrupt, abs=6e-4))
    names = ("correct_correct", "correct_corrupt", "corrupt_correct", "corrupt_corrupt")
    assert [full[f"{name}_word_prob"].mean() for name in names] == [pytest.approx(mean, abs=6e-5) for mean in means]


def test_splits_of_the_twenty_histories(hub):
    checked = 0
    for clip, golden, history in histories(hub):
        assert len(history.positions) == golden["nkeys"], clip
        hubs = split_sinks(scored(history, golden))
        for name, kind in (("v", Modality.VIDEO), ("a", Modality.AUDIO)):
            want, mine = golden[name], history.modality == kind
            uni, cross = (
                set(one.positions.tolist()) & set(history.positions[mine].tolist()) for one in (hubs.uni, hubs.cross)
            )
            assert (int(mine.sum()), len(uni), len(cross)) == (want["n"], want["n_uni"], want["n_cross"]), clip
            assert (sum(uni), sum(cross)) == (want["sum_uni"], want["sum_cross"]), clip
            mean = history.score[:, mine].nanmean(0)
            assert float(mean.mean()) == pytest.approx(want["mean_mds"], abs=1e-9)
            assert float(np.median(mean.numpy())) == pytest.approx(want["median_mds"], abs=1e-9)
            assert int((mean * (1 if name == "v" else -1) < 0).sum()) == want["n_opposite"]
            checked += 1
    assert checked == 40


def scored(history, golden):
    """The stored scores as modality_dominance returns them, over a map of the prompt."""
    n_video, n = 2 * golden["hw"], 16 + golden["T"] * golden["hw"] + golden["A"]
    modality = torch.full((n,), int(Modality.TEXT))
    for i in range(16, n):
        modality[i] = int(Modality.VIDEO if (i - 16) % (n_video + 50) < n_video else Modality.AUDIO)
    tokens = TokenMap.of(torch.zeros(n, dtype=torch.long), [""] * n, Modality.TEXT, Segment.MEDIA)
    sinks = replace(tokens, modality=modality).at(history.positions.tolist())
    one_sided = torch.zeros(len(sinks), dtype=torch.bool)
    return ModalityDominance(
        history.score, history.from_video, history.from_audio, one_sided, sinks, tuple(range(28)), {}
    )


def test_the_patched_sets_are_the_cross_halves_in_every_layer(hub):
    for case, (_, name, _) in CASES.items():
        results = traced(hub, case)
        for clip, golden in GOLDEN.items():
            if golden["case"] == case:
                assert results.loc[clip, "layerlist_len"] == golden["layerlist_len"] == 28 * golden[name]["n_cross"]


def test_scores_follow_from_attention_up_to_bfloat16(hub):
    off, moved, n_uni = 0.0, 0, 0
    for _, _, history in histories(hub):
        again = (history.from_video - history.from_audio) / (history.from_video + history.from_audio + 1e-9)
        assert not again.isnan().any() and history.score.abs().max() <= 1
        off = max(off, float((again - history.score).abs().max()))
        for kind, sign in ((Modality.VIDEO, 1), (Modality.AUDIO, -1)):
            mine = history.modality == kind
            stored, new = (
                set(
                    (sign * score[:, mine].mean(0))
                    .argsort(descending=True, stable=True)[: int(mine.sum()) // 2]
                    .tolist()
                )
                for score in (history.score, again)
            )
            moved, n_uni = moved + len(stored - new), n_uni + len(stored)
    assert off == pytest.approx(0.0089, abs=5e-5)
    assert (moved, n_uni) == (4, 7766)


def test_medians_are_those_of_the_papers_table_12(hub):
    pooled = {Modality.VIDEO: [], Modality.AUDIO: []}
    for _, _, history in histories(hub):
        for kind, values in pooled.items():
            values.append(history.score[:, history.modality == kind].mean(0))
    video, audio = (np.quantile(torch.cat(values).numpy(), [0.25, 0.5, 0.75]) for values in pooled.values())
    assert (video[1], video[2] - video[0]) == (pytest.approx(0.427, abs=6e-4), pytest.approx(0.345, abs=6e-4))
    assert (audio[1], audio[2] - audio[0]) == (pytest.approx(-0.446, abs=6e-4), pytest.approx(0.289, abs=6e-4))


@pytest.mark.parametrize("case", CASES)
def test_each_step_hands_its_numbers_to_the_next(hub, case):
    file, corrupted, _ = CASES[case]
    step1 = {
        run: read_results(hub / f"exp/causal_tracing/step1/{case}/{run}/{file}_small.json") for run in ("av", corrupted)
    }
    step2 = {sample.id: sample.record for sample in read_prompts(prompts(hub, f"step2/{case}_small"))}
    results = traced(hub, case)
    assert list(step2) == list(results.index) and len(results) == 10
    for clip in results.index:
        clean, corrupt, last = step1["av"].loc[clip], step1[corrupted].loc[clip], results.loc[clip]
        assert last["correct_pred"] == clean["av"] and last["corrupt_pred"] == corrupt["text_output"]
        assert last["correct_correct_word_prob"] == clean["av_prob"]
        assert last["correct_corrupt_word_prob"] == clean[f"{corrupted}_prob"]
        assert last["corrupt_correct_word_prob"] == corrupt["av_prob"]
        assert last["corrupt_corrupt_word_prob"] == corrupt[f"{corrupted}_prob"]
        given = {key: value for key, value in step2[clip].items() if key.endswith(("_pred", "_prob"))}
        assert len(given) == 6 and all(last[key] == value for key, value in given.items())


def test_two_runs_of_one_clip_differ_by_less_than_a_tenth(hub):
    off = 0.0
    for case in CASES:
        small, full = traced(hub, case), full_step_2(hub, case)
        names = [name for name in full.columns if name.endswith("_word_prob")]
        off = max(off, float((small[names] - full.loc[small.index, names]).abs().max().max()))
    assert off == pytest.approx(0.0935, abs=6e-5)


L7 = {
    "people": "2.698/-1.306 -.483/.960 .063/.088 .067/1.931 23.776/21.510 6.454/6.339 .749/-.022 16.523/27.854 3.739/1.412 "
    "27.476/4.094",
    "sports": "2.256/18.233 1.323/10.555 2.843/12.310 .166/-4.403 21.005/27.541 -.358/-1.547 .063/1.806 -1.097/-2.385 "
    ".253/7.087 -.194/1.896",
}


@pytest.mark.parametrize("case", L7)
def test_effects_of_each_clip(hub, case):
    want = np.array([[float(value) for value in pair.split("/")] for pair in L7[case].split()])
    np.testing.assert_allclose(np.stack(effects(traced(hub, case)), 1), want, atol=6e-4)


def test_how_many_of_the_selected_clips_keep_the_rule(hub):
    people = [s.record | {"label": s.label} for s in read_prompts(prompts(hub, "step1/people_case_2"))]
    sports = [s.record | {"label": s.label} for s in read_prompts(prompts(hub, "step1/sports_case_1"))]
    counts = [
        [sum(one["a"] == one["av"] for one in people), sum(one["v"] != one["av"] for one in people)],
        [sum(one["v"] == one["av"] for one in sports), sum(one["a"] != one["av"] for one in sports)],
        [sum(one["label"] == one["av"] for one in clips) for clips in (people, sports)],
    ]
    assert counts == [[332, 349], [546, 548], [233, 512]]
    assert sum(dominant_modality(one["av"], one["a"], one["v"]) == "audio" for one in people) == 332
    assert sum(dominant_modality(one["av"], one["a"], one["v"]) == "video" for one in sports) == 546


def test_prompts_and_annotations_as_they_are(hub):
    animals = list(read_prompts(hub / "json_files/asd/vggsound_animal.json"))
    assert len(animals) == 364 and animals[0].record["objects"] == "alligator/crocodile" and not animals[0].options
    people = list(read_prompts(prompts(hub, "step1/people_case_2")))
    assert all(len(one.options) == 20 and one.lists_options and len(one.stills) == 20 for one in people)
    assert "missing" not in open_clip(people[0]).problem and open_clip(people[0]).clip is None
    assert len(read_sounding_chunks(hub / "json_files/object/important_seconds_flam_qwen.json")) > 900


# The format, on made-up records.

CHOICES = {"A": "dog barking", "B": "rope skipping"}
USER = {
    "role": "user",
    "content": [
        {"type": "video", "video": "vggsound_with_mask/video/abc_000001.mp4"},
        {"type": "text", "text": "Which ?\n\nA. dog barking\nB. rope skipping\nRespond."},
    ],
    "label": "B", "label_name": "rope skipping", "choices": CHOICES, "av": "B", "a": "A", "v": "B",
}  # fmt: skip
SYSTEM = {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]}


def write(tmp_path, value):
    path = tmp_path / "file.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_prompt_is_read_with_its_video_or_its_stills(tmp_path):
    stills = [f"frames/xyz_000002/{i:03d}_raw.jpg" for i in (1, 13)]
    other = USER | {"content": [{"type": "video", "video": stills}, USER["content"][1]]}
    one, two = read_prompts(write(tmp_path, [[SYSTEM, USER], [SYSTEM, other]]), tmp_path)
    assert (one.id, one.label, one.options) == ("abc_000001", "B", ("dog barking", "rope skipping"))
    assert one.path == tmp_path / "vggsound_with_mask/video/abc_000001.mp4" and one.lists_options
    assert one.record == {"label_name": "rope skipping", "av": "B", "a": "A", "v": "B"} and one.sound is None
    assert two.id == "xyz_000002" and two.stills == tuple(tmp_path / still for still in stills)
    assert two.sound == tmp_path / "vggsound_with_mask/audio/xyz_000002.wav"


def test_results_are_lines(tmp_path):
    lines = [{"id": i, "video": f"v/clip{i}.mp4", "av_prob": 0.5 * i} for i in range(2)]
    frame = read_results(write(tmp_path, "\n".join(map(json.dumps, lines)) + "\n"))
    assert frame.index.tolist() == ["clip0", "clip1"] and frame.loc["clip1", "av_prob"] == 0.5


def test_a_history_says_which_sinks_are_video_and_which_audio(tmp_path):
    # Two grids of 2 tokens, 3 of audio: 4 video tokens at 1-4, audio at 5-7, video at 8-11, audio at 12-14.
    stored = {str(p): {"mds": [0.5, p / 100], "v_score": [0.3, 0.2], "a_score": [0.1, 0.1]} for p in (9, 1, 4, 12, 5)}
    layout = {"tokens_per_grid": 2, "n_before": 1, "audio_per_chunk": 3}
    history = read_history(write(tmp_path, stored), **layout)
    assert history.positions.tolist() == [9, 1, 4, 12, 5]
    assert history.modality.tolist() == [int(Modality.VIDEO)] * 3 + [int(Modality.AUDIO)] * 2
    assert history.score[1].tolist() == [0.09, 0.01, 0.04, 0.12, 0.05] and history.from_video.shape == (2, 5)
    assert history.to_frame().loc[9, "mds"] == pytest.approx(0.295)
    with pytest.raises(DatasetError, match="Pass the tokens_per_grid of this clip"):
        read_history(tmp_path / "file.json", **(layout | {"tokens_per_grid": 3}))


@pytest.mark.parametrize(
    ("reader", "text", "advice"),
    [
        (lambda path: list(read_prompts(path)), "[[]]", "record 0 is no prompt"),
        (lambda path: list(read_prompts(path)), "[1", "Check the file out again"),
        (read_results, '{"video": "a.mp4"}\n{"vid', "line 2 is no JSON"),
        (read_results, '{"id": 1}', "record 0 has no video"),
        (read_history, '{"1": {"mds": [1]}}', "Give a \\*_history.json file"),
        (read_history, "{", "Check the file out again"),
        (read_sounding_chunks, '[{"audio": "a.wav"}]', "Give important_seconds_flam_qwen.json"),
    ],
)
def test_other_files_are_refused(tmp_path, reader, text, advice):
    with pytest.raises(DatasetError, match=advice):
        reader(write(tmp_path, text))


def test_sounding_chunks_go_by_the_clips_name(tmp_path):
    path = write(tmp_path, [{"audio": "x/abc_000001.wav", "important_blocks": [0, 3]}])
    assert read_sounding_chunks(path) == {"abc_000001": (0, 3)}
