"""`avlens models`: which models avlens knows."""

from avlens.cli.options import AsJson
from avlens.cli.output import echo, rows_of, show


def models(as_json: AsJson = False) -> None:
    """Which models avlens knows."""
    import pandas as pd

    from avlens.checkpoint import zoo_names
    from avlens.families import FAMILIES

    families = pd.DataFrame([{"family": f.name, "models": f.title, "tested against": f.tested} for f in FAMILIES])
    value = {"zoo": zoo_names(), "families": rows_of(families)}
    zoo = "comes with avlens: " + ", ".join(zoo_names())
    show(value, as_json, lambda: echo(families.to_string(index=False), "", zoo))
