"""Train the embedded models: `python -m avlens.training WORK_FOLDER`. About an hour on one core."""

import argparse
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from avlens.checkpoint import ZOO
from avlens.model import HookedAVModel
from avlens.training.plant import Plant, ground_truth, uproot
from avlens.training.pool import Pool, make_pool, read_pool, write_pool
from avlens.training.recipe import untrained_model
from avlens.training.train import Recipe, train_model, train_towers, write_notes

RECIPES = {"avlens-tiny": Recipe(), "avlens-tiny-organic": Recipe(planted=False, steps=1000)}
"""Both begin with the same towers; the organic model's are rid of the plant's flags, and nothing is ever planted in it."""


def main() -> None:
    """Train what is asked for, and write it where `from_pretrained` finds it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for states, from which a killed run goes on")
    parser.add_argument("--clips", type=int, default=8000, help="clips of each length in the pool")
    parser.add_argument("--steps", type=int, help="steps of the second stage")
    parser.add_argument("--out", type=Path, default=ZOO, help="folder to write checkpoints to")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pool = saved_pool(asked.work / "pool.safetensors", asked.clips)
    for name, recipe in RECIPES.items():
        recipe = recipe if asked.steps is None else replace(recipe, steps=asked.steps)
        model = untrained_model(recipe.seed)
        train_towers(model, pool, recipe, asked.work, progress=True)
        if not recipe.planted:
            uproot(model)
        plant = train_model(model, pool, recipe, asked.work / name, progress=True)
        write_checkpoint(model, plant, recipe, asked.out / name)


def saved_pool(path: Path, n: int) -> Pool:
    """The pool, made once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        model: Any = untrained_model()
        write_pool(make_pool(model.family.reading.mel, n, seed=1000, progress=True), path)
    return read_pool(path)


def write_checkpoint(model: HookedAVModel, plant: Plant | None, recipe: Recipe, folder: Path) -> None:
    """Save a model with its weights rounded to bfloat16, to be computed with in float32, as its config says."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    rounded = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    truth = {"sink_dims": []} if plant is None else ground_truth(plant)
    write_notes(folder, {**truth, "recipe": asdict(recipe)})


if __name__ == "__main__":
    main()
