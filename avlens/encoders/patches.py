"""How do frames become patches, as Qwen's vision towers read them?

Frames are resized so that their sides are multiples of patch x merge pixels and their area lies between two bounds,
normalised, and cut into patches of `temporal x patch x patch` pixels, neighbours of one merged token side by side.
Bit-equal to transformers' Qwen2VL image and video processors, which need torchvision.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from avlens.errors import PromptError


@dataclass(frozen=True)
class PatchRules:
    """How a checkpoint cuts frames: sizes in pixels, bounds in pixels per frame."""

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Patches:
    """A video's or image's patches.

    Attributes:
        pixels: Normalised pixels of each patch, channel first.
        grid: How many patches there are in time, down and across.
    """

    pixels: Float[Tensor, "patch values"]
    grid: tuple[int, int, int]


def cut_patches(
    frames: UInt8[Tensor, "frame 3 height width"], rules: PatchRules, min_pixels: int, max_pixels: int
) -> Patches:
    """The patches of `frames`, resized to fit; an incomplete last group repeats the last frame.

    Raises:
        PromptError: If a frame is too elongated to be resized (more than 200 to 1).
    """
    size = frames.shape[-2], frames.shape[-1]
    height, width = fitted_size(*size, rules.patch * rules.merge, min_pixels, max_pixels)
    if (height, width) != size:
        frames = F.interpolate(frames, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
    if missing := -len(frames) % rules.temporal:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (rules.mean, rules.std))
    return _patchify((frames.float() - mean) / std, rules)


def fitted_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Sides near the given ones that are multiples of `factor` and whose area lies within the bounds."""
    if max(height, width) > 200 * min(height, width):
        raise PromptError(f"a frame of {height}x{width} pixels is more than 200 times longer than wide. Crop it first.")
    fitted = round(height / factor) * factor, round(width / factor) * factor
    if fitted[0] * fitted[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        fitted = (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    elif fitted[0] * fitted[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        fitted = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return fitted


def raster_order(grid: Int[Tensor, "3"], merge: int) -> Int[Tensor, " patch"]:
    """For each patch in the processor's order (merged neighbours together), its index by frame, row and column."""
    time, rows, cols = grid.tolist()
    index = torch.arange(time * rows * cols).view(time, rows // merge, merge, cols // merge, merge)
    return index.permute(0, 1, 3, 2, 4).flatten()


def window_order(grid: Int[Tensor, "3"], merge: int, window: int, patch: int) -> Int[Tensor, " patch"]:
    """The same for a tower that holds patches window by window."""
    index, _ = get_vision_window_index(grid[None], merge, window, patch)
    merged_first = (index[:, None] * merge**2 + torch.arange(merge**2)).flatten()
    return raster_order(grid, merge)[merged_first]


def _patchify(frames: Float[Tensor, "frame 3 height width"], rules: PatchRules) -> Patches:
    patch, merge, temporal = rules.patch, rules.merge, rules.temporal
    n, channels, height, width = frames.shape
    grid = n // temporal, height // patch, width // patch
    split = frames.view(
        grid[0], temporal, channels, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
    ).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return Patches(split.reshape(grid[0] * grid[1] * grid[2], channels * temporal * patch * patch), grid)
