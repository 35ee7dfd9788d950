"""What `reproduce --scale=smoke` trains and evaluates: tiny, and random.

A cell is a `reproduce.Cell`; all files lie in the workdir of all runs.
"""

import pathlib

import numpy as np

from vit_ssl_jax import files
from vit_ssl_jax.data import registry
from vit_ssl_jax.evaluate import corruptions

ALL = {
  "epochs": 2,
  "batch_size": 8,
  "model.embed_dim": 12,
  "optim.warmup_epochs": 1,
  "evaluate_every_epochs": 1,
  "evaluate_batch_size": 8,
  "checkpoint_every_steps": 2,
  "tensorboard": False,
}
PRETRAIN = {
  "teacher.temperature_warmup_epochs": 1,
  "views.local_views": 1,
  "head.out_dim": 16,
  "head.hidden_dim": 8,
  "head.bottleneck_dim": 8,
}
SIZES = {
  "vit": {"model.depth": 1, "model.num_heads": 2},
  "swin": {"model.depths": "(1,1,1)", "model.num_heads": "(1,2,2)"},
  "cait": {"model.depth": 1, "model.depth_token_only": 1, "model.num_heads": 2},
}


def recipe(workdir, cell, stage):
  """key -> value, of what differs from the recipe of a stage."""
  values = ALL | SIZES[cell.arch] | (PRETRAIN if stage == "pretrain" else {})
  return values | {"dataset": f"npz:{images(workdir, cell)}"}


def classes(cell):
  """How many: few, or all where a benchmark has as many."""
  return registry.SETS[cell.dataset].classes if cell.suite else 4


def images(workdir, cell):
  """The path of random images of a set's size."""
  side = registry.SETS[cell.dataset].image_size
  name = f"stand_in_{side}_{classes(cell)}.npz"
  return pathlib.Path(workdir, name).absolute()


def corrupted(workdir, cell):
  """The folder of random images in the format of CIFAR-C."""
  return pathlib.Path(workdir, f"stand_in_{cell.suite}").absolute()


def make(workdir, cell):
  """Writes the images of a cell, unless they are there."""
  path, folder = images(workdir, cell), corrupted(workdir, cell)
  if not path.exists():
    make_images(path, registry.SETS[cell.dataset].image_size, classes(cell))
  if cell.suite and not (folder / corruptions.STAND_IN).exists():
    make_corrupted(folder, classes(cell))


def make_images(path, side, num_classes):
  """Writes at least 32 images for training and 16 for testing."""
  rng = np.random.default_rng(0)
  arrays = {}
  for part, least in (("train", 32), ("test", 16)):
    count = max(least, num_classes)
    shape = (count, side, side, 3)
    arrays[f"{part}_images"] = rng.integers(0, 256, shape, np.uint8)
    arrays[f"{part}_labels"] = np.arange(count) % num_classes
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(path) as temporary, temporary.open("wb") as file:
    np.savez(file, **arrays)


def make_corrupted(folder, num_classes):
  """Writes an image of each class for each corruption and severity."""
  rng = np.random.default_rng(0)
  severities, side = len(corruptions.SEVERITIES), corruptions.SIZE
  shape = (severities * num_classes, side, side, 3)
  folder.mkdir(parents=True, exist_ok=True)
  np.save(folder / "labels.npy", np.tile(np.arange(num_classes), severities))
  for name in corruptions.CORRUPTIONS:
    np.save(folder / f"{name}.npy", rng.integers(0, 256, shape, np.uint8))
  # Last, so that a folder that has it is whole.
  files.write(folder / corruptions.STAND_IN, f"{num_classes}\n")
