"""Train the embedded models: `python -m avlens.training WORK_FOLDER`. About half an hour on one core."""

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from avlens.checkpoint import ZOO
from avlens.model import HookedAVModel
from avlens.training.plant import Plant, ground_truth
from avlens.training.pool import Pool, make_pool
from avlens.training.recipe import untrained_model
from avlens.training.train import Recipe, organic, train_model, train_towers, write_notes

RECIPES = {"avlens-tiny": Recipe(), "avlens-tiny-organic": organic(Recipe(steps=1400))}


def main() -> None:
    """Train what is asked for, and write it where `from_pretrained` finds it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for states, from which a killed run goes on")
    parser.add_argument("--only", choices=list(RECIPES), help="one of the models instead of both")
    parser.add_argument("--clips", type=int, default=2500, help="clips of each length in the pool")
    parser.add_argument("--steps", type=int, help="steps of the second stage")
    parser.add_argument("--out", type=Path, default=ZOO, help="folder to write checkpoints to")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pool = saved_pool(asked.work / "pool.pt", asked.clips)
    for name, recipe in RECIPES.items():
        if asked.only in (None, name):
            recipe = recipe if asked.steps is None else replace(recipe, steps=asked.steps)
            model = untrained_model(recipe.seed, name=name)
            train_towers(model, pool, recipe, asked.work, progress=True)
            plant = train_model(model, pool, recipe, asked.work / name, progress=True)
            write_checkpoint(model, plant, recipe, asked.out / name)


def saved_pool(path: Path, n: int) -> Pool:
    """The pool, made once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        model: Any = untrained_model()
        torch.save(make_pool(model.family.mel, n, seed=1000, progress=True), path)
    return torch.load(path, weights_only=False)  # our own file


def write_checkpoint(model: HookedAVModel, plant: Plant | None, recipe: Recipe, folder: Path) -> None:
    """Save a model with its weights rounded to bfloat16, to be computed with in float32."""
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype"] = "float32"
    for part in (config["thinker_config"], *(config["thinker_config"][f"{name}_config"] for name in PARTS)):
        part["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    truth = {"sink_dims": []} if plant is None else ground_truth(plant)
    write_notes(folder, {**truth, "recipe": asdict(recipe)})


PARTS = ("text", "audio", "vision")


if __name__ == "__main__":
    main()
