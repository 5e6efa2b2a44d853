"""Which clips does one modality decide? The clips behind the tables of causal effects.

python selection.py                                                          avlens-tiny, on clips that it knows
python selection.py --model Qwen/Qwen2.5-Omni-7B --data vggsound.csv --clips vggsound/ --out judged
"""

from pathlib import Path

import typer

from avlens import HookedAVModel
from avlens.analyses.selection import Selection, unimodal_dominance
from avlens.data import read_data


def main(
    model: str = "avlens-tiny", data: str = "synthetic:40", clips: Path = Path(), out: Path | None = None
) -> Selection:
    loaded = HookedAVModel.from_pretrained(model)
    found = read_data(data, clips, sampling=loaded.family.sampling)
    selection = unimodal_dominance(loaded, found.samples, ask=found.ask, read=found.read, save_to=out, progress=True)
    print(selection)
    print(
        selection.to_frame()
        .groupby("dominant")[["correct", "TE_clean", "TE_corrupt"]]
        .agg(["count", "mean"])
        .to_string()
    )
    return selection


if __name__ == "__main__":
    typer.run(main)
