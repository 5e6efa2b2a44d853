"""TransformerLens for models that hear and see.

Everything here is loaded when it is first used, so that `import avlens` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from avlens.version import __version__

if TYPE_CHECKING:
    from avlens.cache import AVCache, attention_received, reduce
    from avlens.inputs import AVInputs
    from avlens.interventions.ablate import ablate
    from avlens.interventions.discard import discard
    from avlens.interventions.knockout import knockout
    from avlens.interventions.patch import patch
    from avlens.interventions.reweight import reweight
    from avlens.media import Clip
    from avlens.model import HookedAVModel
    from avlens.tokens import TokenMap, TokenSet

__all__ = [
    "AVCache", "AVInputs", "Clip", "HookedAVModel", "TokenMap", "TokenSet", "__version__", "ablate", "attention_received",
    "discard", "knockout", "patch", "reduce", "reweight",
]  # fmt: skip

_HOMES = {
    "AVCache": "cache", "attention_received": "cache", "reduce": "cache", "AVInputs": "inputs", "Clip": "media",
    "HookedAVModel": "model", "TokenMap": "tokens", "TokenSet": "tokens", "ablate": "interventions",
    "discard": "interventions", "knockout": "interventions", "patch": "interventions", "reweight": "interventions",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"avlens.{_HOMES[name]}"), name)
    if name in ("views", "testing"):
        return import_module(f"avlens.{name}")
    raise AttributeError(f"module 'avlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "views", "testing"])
