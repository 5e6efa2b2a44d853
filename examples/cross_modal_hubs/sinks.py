"""Where are sinks, who reads them, and how much of that is where they stand? Counts by layer, MDS, and its confounds.

python sinks.py                                                              avlens-tiny, on clips that it knows
python sinks.py --model Qwen/Qwen2.5-Omni-7B --data vggsound.csv --clips vggsound/ --limit 100
"""

from pathlib import Path

import pandas as pd
import typer

from avlens import HookedAVModel, views
from avlens.analyses.selection import prompt_of
from avlens.analyses.sinks import find_sink_dims
from avlens.data import read_data
from avlens.hubs import find_hubs
from avlens.samples import open_clips


def main(
    model: str = "avlens-tiny", data: str = "synthetic:20", clips: Path = Path(), out: Path = Path("sinks"), n: float = 2,
    limit: int = 100,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    loaded = HookedAVModel.from_pretrained(model)
    found = read_data(data, clips, limit=limit, sampling=loaded.family.sampling)
    opened = [one for one in open_clips(found.samples, found.read) if one.clip is not None]
    hubs = [find_hubs(loaded, prompt_of(loaded, one.clip, one.sample, found.ask), n=n) for one in opened]
    scores = pd.concat([one.dominance.to_frame() for one in hubs])
    scores["mds"] = scores["mds"].where(scores["modality"].isin(["audio", "video"]))
    by_modality = scores.groupby("modality")["mds"].quantile([0.25, 0.5, 0.75]).unstack()
    tables = {
        "sink dimensions": find_sink_dims(loaded).to_frame(),
        "sinks per layer, mean over clips": pd.concat([one.sinks.per_layer() for one in hubs]).groupby(level=0).mean(),
        "MDS per sink, pooled over clips": by_modality.assign(IQR=by_modality[0.75] - by_modality[0.25]),
        "position confound, mean over clips": pd.concat(
            [one.dominance.position_confound() for one in hubs]
        ).groupby(level=0).mean(),
        "share of each half in each chunk": _chunks(hubs),
    }  # fmt: skip
    for name, table in tables.items():
        print(f"\n{name}\n{table.to_string(float_format=lambda x: f'{x:.3f}')}")
    out.mkdir(parents=True, exist_ok=True)
    for name, result in (("sinks", hubs[0].sinks), ("dominance", hubs[0].dominance), ("hubs", hubs[0].hubs)):
        views.plot(result).write_html(out / f"{name}.html")  # of the first clip
    return tables


def _chunks(hubs) -> pd.DataFrame:
    """Where cross-modal and unimodal sinks stand: a half that stands early has more readers, whatever it does."""
    rows = []
    for one in hubs:
        tokens = one.sinks.token_map
        for half in ("uni", "cross"):
            for kind in ("video", "audio"):
                chosen, ranks = getattr(one.hubs, half) & getattr(tokens, kind), {}
                for chunk in tokens.chunk[getattr(tokens, kind).positions].unique().tolist():
                    ranks[chunk] = len(ranks)
                rows += [(f"{kind} {half}", ranks[int(tokens.chunk[position])]) for position in chosen]
    return pd.crosstab(*zip(*rows, strict=True), rownames=["half"], colnames=["chunk"], normalize="index")


if __name__ == "__main__":
    typer.run(main)
