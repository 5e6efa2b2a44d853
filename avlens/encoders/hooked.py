"""How can a stock encoder be read and edited block by block?

The stock tower stays as it is; a torch hook on each of its blocks passes the block's output through a HookPoint,
so that `vision.blocks.{i}.hook_resid_post` and `audio.blocks.{i}.hook_resid_post` are as writable as the decoder's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from avlens.hooks import HookPoint, watched


class EncoderBlock(nn.Module):
    """The hook points of one block of a tower."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_resid_post = HookPoint()


class HookedEncoder(nn.Module):
    """A stock tower with hook points at its blocks.

    Attributes:
        tower: The stock module.
        blocks: One set of hook points per block.
        order: Where the tower shuffles its positions, the natural position of each row it holds; set before a call.
    """

    tower: Any
    order: Int[Tensor, " encoder_pos"] | None

    def __init__(self, tower: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.tower = tower
        self.order = None
        self.blocks = nn.ModuleList(EncoderBlock() for _ in blocks)
        for points, block in zip(self.blocks, blocks, strict=True):
            block.register_forward_hook(self._through(points))

    @property
    def watched(self) -> bool:
        """Whether anything listens at a block."""
        return any(watched(block.hook_resid_post) for block in self.blocks)

    def _through(self, points: nn.Module) -> Any:
        def passed(_module: nn.Module, _args: Any, output: Any) -> Any:
            point = points.hook_resid_post
            assert isinstance(point, HookPoint)
            if not watched(point):
                return None
            inside = output[0] if isinstance(output, tuple) else output
            # A tower that works in chunks or frames holds one batch row for each; a hook sees them in a line.
            rows = inside.flatten(0, -2)
            if self.order is not None:
                rows = rows[torch.argsort(self.order)]
            edited = point(rows[None])[0]
            if self.order is not None:
                edited = edited[self.order]
            edited = edited.view_as(inside)
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        return passed
