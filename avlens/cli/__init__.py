"""The command line: parsing and printing only. One file, one command; `options` and `output` are what they share.

Every command takes `--json` (one JSON object on stdout and nothing else), and those that run a model its name: `--model`, a name
of the zoo, a folder, or a hub id. Bad input ends with a message on stderr and exit code 2. A command imports what it runs when
it runs, so that `--help` is there at once.
"""

import sys
from typing import Annotated

import typer

from avlens.cli import caption, check, demo, flow, lens, models, run, sinks, table, tokens, trace
from avlens.errors import AVLensError
from avlens.version import __version__

COMMANDS = (
    demo.demo, tokens.tokens, sinks.sinks, trace.trace, lens.lens, table.table, flow.flow, caption.caption, run.run,
    models.models, check.check,
)  # fmt: skip
"""As the help lists them: a command is a function, named and documented as users see it, and its options are its parameters."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; our errors, and files that cannot be read or written, become a message and exit code 2."""
    try:
        app()
    except (AVLensError, OSError) as error:
        typer.echo(f"avlens: {error}", err=True)
        sys.exit(2)


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"avlens {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """TransformerLens for models that hear and see."""
