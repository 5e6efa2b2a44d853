"""Which versions made a result?"""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"


@cache
def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Versions of avlens and of what computes for it."""
    return {"avlens": __version__} | {name: _installed(name) for name in ("torch", "transformers", "transformer-lens")}
