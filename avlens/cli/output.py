"""What commands print: text, or one JSON object."""

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import typer


def show(value: Any, as_json: bool, otherwise: Callable[[], None]) -> None:
    """A value as JSON, or else the text that `otherwise` prints."""
    if as_json:
        typer.echo(json.dumps(_plain(value), default=str))
    else:
        otherwise()


def echo(*lines: str) -> None:
    """Lines, but for empty ones."""
    for line in lines:
        if line:
            typer.echo(line)


def bars(as_json: bool) -> bool:
    """Whether bars of progress are shown: to somebody who watches, never in a file."""
    return not as_json and sys.stderr.isatty()


def rows_of(frame: Any) -> list[dict[str, Any]]:
    """Of a DataFrame, as JSON has them."""
    return json.loads(frame.to_json(orient="records"))


def _plain(value: Any) -> Any:
    """JSON has no NaN: what could not be computed is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
