"""Does Adaptive Sink-guided Decoding hallucinate less? Captions by ASD and its rivals, scored by CHAIR and ALOHa.

    python decoding.py                                                           avlens-tiny, on clips that it knows
    python decoding.py --model Qwen/Qwen2.5-Omni-7B --data vggsound_animal.json --clips crossmodal-hub/

avlens-tiny seldom errs; `--noise 250` adds noise to sight and sound, so that there is something to hallucinate.
"""

from pathlib import Path

import pandas as pd
import typer
from tqdm.auto import tqdm

from avlens import HookedAVModel
from avlens.data import read_data
from avlens.decoding import ASD, AVCD, FMD, PAI, VCD
from avlens.metrics.aloha import OverlapEmbedder, VocabularyExtractor, aloha
from avlens.metrics.chair import chair
from avlens.samples import open_clips

METHODS = {"vanilla": None, "PAI": PAI(), "VCD": VCD(), "AVCD": AVCD(), "FMD (approximate)": FMD(), "ASD": ASD()}


def main(
    model: str = "avlens-tiny", data: str = "synthetic:20", clips: Path = Path(), out: Path = Path("captions.csv"),
    noise: int = 0, max_new_tokens: int = 64,
) -> pd.DataFrame:  # fmt: skip
    loaded = HookedAVModel.from_pretrained(model)
    found = read_data(data, clips, task="describe", sampling=loaded.family.sampling)
    captions, truths = {name: [] for name in METHODS}, []
    for opened in tqdm(open_clips(found.samples, found.read), total=len(found.samples), unit="clip"):
        if opened.clip is None:
            print(opened.sample.id, opened.problem)
            continue
        clip = opened.clip.noised(noise, seed=len(truths)) if noise else opened.clip
        inputs = loaded.prepare(clip, opened.sample.question)
        truths.append(found.truth(opened.sample))
        for name, method in METHODS.items():
            captions[name].append(loaded.generate(inputs, max_new_tokens, decoding=method).text)
    pd.DataFrame(captions).assign(truth=truths).to_csv(out)
    names = {"extract": VocabularyExtractor(found.vocabulary), "embed": OverlapEmbedder(found.vocabulary)}
    rows = {}
    for name, written in captions.items():
        scores = chair(written, truths, vocabulary=found.vocabulary)
        worst = aloha(written, truths, **names)
        intervals = {"ALOHa": worst.mean} | {
            key: scores.intervals[key] for key in ("Cs", "Ci", "F1", "recall", "length")
        }
        rows[name] = {key: f"{x.estimate:.2f} [{x.low:.2f}, {x.high:.2f}]" for key, x in intervals.items()}
    table = pd.DataFrame(rows).T
    print(table.to_string())
    return table


if __name__ == "__main__":
    typer.run(main)
