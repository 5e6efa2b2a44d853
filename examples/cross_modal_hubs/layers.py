"""In which layers do video tokens carry what is heard? One layer patched at a time, in clips that audio decides.

    python layers.py                                                             avlens-tiny, on clips that it knows
    python layers.py --model Qwen/Qwen2.5-Omni-7B --data vggsound.csv --clips vggsound/

Patching `ln1.normalized`, what a layer's queries, keys and values are made of, acts in that layer alone, as in the paper.
"""

from pathlib import Path

import pandas as pd
import torch
import typer

from avlens import HookedAVModel, views
from avlens.analyses.selection import answer_of, prompt_of, three_clips, unimodal_dominance
from avlens.analyses.tracing import trace_layers
from avlens.data import read_data
from avlens.metrics.effects import bootstrap_mean
from avlens.samples import open_clip


def main(
    model: str = "avlens-tiny", data: str = "synthetic:40", clips: Path = Path(), out: Path = Path("layers.html"),
    site: str = "ln1.normalized",
) -> pd.DataFrame:  # fmt: skip
    loaded = HookedAVModel.from_pretrained(model)
    found = read_data(data, clips, sampling=loaded.family.sampling)
    selection = unimodal_dominance(loaded, found.samples, ask=found.ask, read=found.read, progress=True)
    samples, traces = {sample.id: sample for sample in found.samples}, []
    for one in selection.audio_dominant:
        sample = samples[one.id]
        three = three_clips(open_clip(sample, found.read))
        clean, silent = (prompt_of(loaded, three[run], sample, found.ask) for run in ("both", "video"))
        answers = (answer_of(sample, one.o_clean, found.ask), answer_of(sample, one.o_corrupt, found.ask))
        traces.append(trace_layers(loaded, clean, silent, clean.tokens.video, site=site, answers=answers))
    effects = torch.stack([trace.ie_clean for trace in traces])
    means = [bootstrap_mean(100 * column) for column in effects.T]
    table = pd.DataFrame(
        {"IE_clean x100": [str(mean) for mean in means]}, index=pd.Index(range(len(means)), name="layer")
    )
    print(table.to_string())
    views.plot(traces[int(effects.amax(1).argmax())]).write_html(out)  # the clip with the largest effect
    return table


if __name__ == "__main__":
    typer.run(main)
