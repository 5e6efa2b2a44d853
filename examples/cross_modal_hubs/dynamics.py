"""While it writes genuine and hallucinated objects, how much does a model read cross-modal and unimodal sinks?

    python dynamics.py                                                           avlens-tiny, on clips that it knows
    python dynamics.py --model Qwen/Qwen2.5-Omni-7B --data vggsound_animal.json --clips crossmodal-hub/

avlens-tiny seldom errs; `--noise 250` adds noise to sight and sound, so that there is something to hallucinate.
"""

from pathlib import Path

import pandas as pd
import typer
from tqdm.auto import tqdm

from avlens import HookedAVModel, views
from avlens.analyses.dynamics import attention_dynamics
from avlens.data import read_data
from avlens.hubs import find_hubs
from avlens.samples import open_clips


def main(
    model: str = "avlens-tiny", data: str = "synthetic:20", clips: Path = Path(), out: Path = Path("dynamics.html"),
    noise: int = 0, n: float = 3,
) -> pd.DataFrame:  # fmt: skip
    loaded = HookedAVModel.from_pretrained(model)
    found = read_data(data, clips, task="describe", sampling=loaded.family.sampling)
    frames, drawn = [], None
    for opened in tqdm(open_clips(found.samples, found.read), total=len(found.samples), unit="clip"):
        if opened.clip is None:
            print(opened.sample.id, opened.problem)
            continue
        clip = opened.clip.noised(noise, seed=len(frames)) if noise else opened.clip
        inputs = loaded.prepare(clip, opened.sample.question)
        hubs = find_hubs(loaded, inputs, n=n).hubs
        sets = {name: chosen for name, chosen in (("cross", hubs.cross), ("uni", hubs.uni)) if chosen}
        if not sets:
            continue
        caption = loaded.generate(inputs).text
        true = {one for truth in found.truth(opened.sample) for one in found.vocabulary.objects(truth)}
        said = {one.words: one.object for one in found.vocabulary.mentions(caption)}
        kinds = {words: "genuine" if object_ in true else "hallucinated" for words, object_ in said.items()}
        dynamics = attention_dynamics(loaded, inputs, sets, words=list(kinds))
        drawn = dynamics if drawn is None or "hallucinated" in kinds.values() else drawn
        frames.append(dynamics.at_words(kinds))
    table = _pooled(pd.concat(frames))
    print(table.to_string(float_format=lambda x: f"{x:.5f}"))
    views.plot(drawn).write_html(out)
    return table


def _pooled(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean attention over all words of a kind: a clip counts as often as it has such words."""
    frame = frame[frame["words"] > 0]
    weighted = frame.assign(total=frame["attention"] * frame["words"])
    sums = weighted.groupby(["kind", "set", "layer"])[["total", "words"]].sum()
    return (sums["total"] / sums["words"]).unstack("layer").join(sums["words"].groupby(level=[0, 1]).max())


if __name__ == "__main__":
    typer.run(main)
