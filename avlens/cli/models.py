"""`avlens models`: which models avlens knows."""

from avlens.cli.options import AsJson
from avlens.cli.output import echo, show


def models(as_json: AsJson = False) -> None:
    """Which models avlens knows."""
    from avlens.checkpoint import zoo_names
    from avlens.families import FAMILIES

    families = [{"family": f.name, "models": f.title, "tested against": f.tested} for f in FAMILIES]
    lines = [f"{f.name}: {f.title}\n    tested against {f.tested}" for f in FAMILIES]
    zoo = "comes with avlens: " + ", ".join(zoo_names())
    show({"zoo": zoo_names(), "families": families}, as_json, lambda: echo(*lines, zoo))
