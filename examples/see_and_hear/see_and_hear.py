"""Do audio-visual models really see and hear? Fidelity, latent understanding, shift, and what carries the answer.

python see_and_hear.py                                   avlens-tiny, on clips that it knows
python see_and_hear.py --clips 60 --out work             more of them, with pictures
"""

from pathlib import Path

import pandas as pd
import typer
from tqdm.auto import tqdm

from avlens import Clip, HookedAVModel, views
from avlens.analyses.attribution_patching import attribution_patching, exact_patching
from avlens.analyses.logit_lens import latent_understanding, logit_lens
from avlens.analyses.paths import path_patching
from avlens.analyses.shift import shift_table, token_distribution_shift
from avlens.datasets.counterfactual import write_counterfactuals
from avlens.datasets.synthetic import SHAPES, SOUNDS, counterfactual_pairs, synthetic_clips
from avlens.groups import token_groups
from avlens.metrics.effects import bootstrap_mean
from avlens.metrics.fidelity import KeywordMatch, caption_fidelity, relative_drop
from avlens.metrics.vocabulary import Vocabulary
from avlens.samples import Sample

REQUEST = "describe the clip ."
EDGES = ["audio -> video", "audio -> question", "audio -> last", "video -> last"]


def main(
    model: str = "avlens-tiny", clips: int = 24, pairs: int = 4, seed: int = 7, out: Path = Path("see_and_hear")
) -> None:
    loaded = HookedAVModel.from_pretrained(model)
    drawn = synthetic_clips(clips, seed=seed, blank=0, silent=0)
    out.mkdir(parents=True, exist_ok=True)
    fidelity(loaded, drawn, out)
    read(loaded, drawn, out)
    carried(loaded, counterfactual_pairs(pairs, seed=seed), out)


def fidelity(model, drawn, out):
    """What captions tell of sound and sight, on clips that keep their sound and on those that do not."""
    samples = [Sample(f"{i}", one.clip.to_file(out / f"{i}.mp4"), "") for i, one in enumerate(drawn)]
    seen, heard = ([f"a {getattr(one.content, part)}" for one in drawn] for part in ("shape", "sound"))
    made = write_counterfactuals(samples, heard, out / "counterfactual", video_captions=seen)
    judge, scored = KeywordMatch(Vocabulary(dict.fromkeys((*SOUNDS, *SHAPES), ()))), {}
    for swapped in (False, True):
        its = [sample for sample in made.samples(REQUEST) if sample.record["counterfactual"] is swapped]
        read = [Clip.from_file(sample.path, **model.family.sampling) for sample in its]
        captions = [model.generate(model.prepare(clip, REQUEST), 16).text for clip in tqdm(read, desc="captions")]
        told = {kind: [sample.record[f"{kind}_captions"][0] for sample in its] for kind in ("audio", "video")}
        scored[swapped] = caption_fidelity(captions, told, judge)
    print("factual:       ", scored[False])
    print("counterfactual:", scored[True])
    print("relative drop: ", {kind: relative_drop(scored[False], scored[True], kind) for kind in ("audio", "video")})


def read(model, drawn, out):
    """What audio tokens say, and what would have been written without sound."""
    prompts = [model.prepare(one.clip, REQUEST) for one in drawn]
    lenses = [logit_lens(model, prompt) for prompt in tqdm(prompts, desc="lens")]
    latent = latent_understanding(lenses, [{one.content.sound} for one in drawn])
    deaf = [model.prepare(one.clip.without_audio(), REQUEST) for one in drawn]
    shifts = [token_distribution_shift(model, a, b, words=SOUNDS) for a, b in zip(prompts, deaf, strict=True)]
    print(latent, shift_table(shifts), sep="\n")
    for name, result in {"latent": latent, "lens": lenses[0], "shift": shift_table(shifts)}.items():
        views.plot(result).write_html(out / f"{name}.html")


def carried(model, pairs, out):
    """How far estimated patches are in the order of exact ones, and along which edges the answer comes."""
    spearman, shares = {1: [], 4: []}, []
    for pair in tqdm(pairs, desc="patching"):
        clean, corrupt = (model.prepare(one.clip, "which sound does it make ?") for one in pair)
        groups = {name: tokens for name, tokens in token_groups(clean.tokens).items() if name != "generated"}
        exact = exact_patching(model, clean, corrupt, groups)
        for steps, found in spearman.items():
            told = attribution_patching(model, clean, corrupt, groups, steps=steps)
            found.append(told.agrees_with(exact).spearman)
        shares.append(path_patching(model, clean, corrupt, EDGES).shares[:, 0].tolist())
    views.compare(told, exact).write_html(out / "attribution.html")
    for steps, found in spearman.items():
        print(f"attribution against exact patching, gradients: {steps}, Spearman", bootstrap_mean(found))
    print(pd.DataFrame(shares, columns=EDGES).mean().rename("share of the total effect"))


if __name__ == "__main__":
    typer.run(main)
