"""What do cross-modal sinks carry? The tables of causal effects, with matched controls and intervals.

    python causal_tracing.py                                                     avlens-tiny, on clips that it knows
    python causal_tracing.py --model Qwen/Qwen2.5-Omni-7B --data vggsound.csv --clips vggsound/

`avlens table` does the same.
"""

from pathlib import Path

import typer

from avlens import HookedAVModel, views
from avlens.analyses.selection import unimodal_dominance
from avlens.data import read_data
from avlens.hub_table import HubTable, hub_table


def main(
    model: str = "avlens-tiny", data: str = "synthetic:40", clips: Path = Path(), out: Path = Path("causal_tracing"),
    draws: int = 10,
) -> HubTable:  # fmt: skip
    loaded = HookedAVModel.from_pretrained(model)
    found = read_data(data, clips, sampling=loaded.family.sampling)
    out.mkdir(parents=True, exist_ok=True)
    selection = unimodal_dominance(
        loaded, found.samples, ask=found.ask, read=found.read, save_to=out / "judged", progress=True
    )
    table = hub_table(loaded, found.samples, selection, read=found.read, n=[2, 3, 4], draws=draws, progress=True)
    print(table)
    (out / "table.tex").write_text(table.to_latex())
    for case, one in table.tables.items():
        views.plot(one).write_html(out / f"{case.replace(' ', '_')}.html")
    return table


if __name__ == "__main__":
    typer.run(main)
