"""`avlens check`: the laws, on a checkpoint."""

from typing import Annotated

import typer

from avlens.cli.options import HEAR, AsJson, Device, Dtype, load
from avlens.cli.output import rows_of, show


def check(
    model: Annotated[str, typer.Argument(help="A name of the zoo, a folder, or a hub id.")],
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Run the laws on a checkpoint; exit code 1 if one is broken."""
    from avlens.datasets.synthetic import ball_and_bell
    from avlens.laws import check_laws, laws_table

    loaded = load(model, device, dtype)
    laws = check_laws(loaded, loaded.prepare(ball_and_bell(4.0, fps=2.0), HEAR))
    table = laws_table(laws)
    value = {"model": model, "holds": all(law.holds for law in laws), "laws": rows_of(table.reset_index())}
    show(value, as_json, lambda: typer.echo(table.to_string(float_format=lambda x: f"{x:.1e}")))
    if not value["holds"]:
        raise typer.Exit(1)
