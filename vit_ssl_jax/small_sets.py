"""Accuracy against the number of images: scratch, the paper's recipe, ours.

`reproduce --table=small_sets` makes these runs on subsets of CIFAR-10. All of a
subset have the same small network and the same number of image passes in each
stage; recipes differ in all else. Patches are twice as large as the rule has
them, to save time.
"""

import itertools
import math
import pathlib

import numpy as np
from matplotlib import figure

from vit_ssl_jax import cli, files, recipes
from vit_ssl_jax.data import load
from vit_ssl_jax.data.facts import Facts
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import custom, schema

SIZES = (500, 1000, 2500, 5000, 10_000)
# Workdir -> what it is called.
KINDS = {
  "scratch": "from scratch, our recipe",
  "scratch_paper": "from scratch, the paper's recipe",
  "paper": "pretrained, the paper's recipe",
  "own": "pretrained, our recipe",
}
# Of result.json; top-1 of a fine-tuning, k-NN of a pretraining, in percent.
MEASURED = ("top1", "knn", "knn_raw_pixels", "knn_untrained", "seconds")
# Image passes.
PASSES = {"pretrain": 200_000, "finetune": 100_000}
SMOKE = {"pretrain": 1000, "finetune": 1000}
PATCH_SIZE = 8
# What is the same under both recipes.
KEPT = ("model.", "views.global_size", "views.local_size", "dataset", "budget")
KEPT += ("mean", "std", "evaluate_every_epochs")


def chosen(only):
  """The sizes of the subsets, or one of them.

  Raises:
    UserError: there is no such one.
  """
  if not only:
    return SIZES
  found = [size for size in SIZES if only == str(size)]
  if not found:
    raise UserError(
      f"--only={only}: the table small_sets has {', '.join(map(str, SIZES))}"
    )
  return found


def jobs(size, seed, args):
  """(workdir, command) of a subset's runs, in order."""
  root = pathlib.Path(args.workdir, f"small_{size}_seed{seed}")
  found = []

  def add(name, stage, paper, init=""):
    values = recipe(size, stage, paper, args) | {"seed": seed}
    if init:
      values["init_from"] = root / init
    arg = f"vit,npz:{subset(size, args)}"
    found.append((root / name, command(stage, arg, root / name, values)))

  add("scratch", "finetune", False)
  add("scratch_paper", "finetune", True)
  add("teacher", "pretrain", False)
  add("own", "finetune", False, "teacher")
  add("teacher_paper", "pretrain", True)
  add("paper", "finetune", True, "teacher_paper")
  return found


def command(stage, arg, workdir, values):
  """The command of a run.

  Args:
    stage: "pretrain" or "finetune".
    arg: of its recipe, "ARCH,DATASET".
    workdir: its folder.
    values: of keys that differ from the recipe's.
  """
  return [
    *("python", "-m", "main"),
    f"--config=configs/{stage}.py:{arg}",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


def recipe(size, stage, paper, args):
  """The values that a run is given beside its images, by their keys."""
  passes = (SMOKE if args.scale == "smoke" else PASSES)[stage]
  arg = f"vit,npz:{subset(size, args)}"
  plain = schema.flat(recipes.get(stage, arg))
  filled = recipes.get(stage, arg)
  filled.model.patch_size = PATCH_SIZE
  custom.resolve(filled, Facts(size, 10, 32), small=True, passes=passes)
  filled.evaluate_every_epochs = max(1, filled.epochs // 4)
  values = schema.flat(filled)
  if paper:
    theirs = recipes.get(stage, "vit,cifar10")
    theirs.epochs = filled.epochs  # its warm-ups follow
    theirs.batch_size = min(theirs.batch_size, 2 ** int(math.log2(size / 2)))
    values |= {
      key: value
      for key, value in schema.flat(theirs).items()
      if key in values and not key.startswith(KEPT)
    }
  return {key: x for key, x in values.items() if x != plain[key]}


def subset(size, args):
  """The path of a subset."""
  return pathlib.Path(args.workdir, f"cifar10_{size}.npz").absolute()


def make_subsets(sizes, args):
  """Writes those that are missing: balanced, each part of the next larger.

  Raises:
    UserError: CIFAR-10 cannot be loaded.
  """
  missing = [size for size in sizes if not subset(size, args).exists()]
  if not missing:
    return
  whole = load.load("cifar10", 32)
  labels = np.asarray(whole.train_labels)
  rng = np.random.default_rng(0)
  order = [rng.permutation(np.flatnonzero(labels == i)) for i in range(10)]
  for size in missing:
    rows = np.sort(np.concatenate([x[: size // 10] for x in order]))
    path = subset(size, args)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as temporary, temporary.open("wb") as file:
      np.savez(
        file,
        train_images=np.asarray(whole.train_images[rows]),
        train_labels=labels[rows],
        test_images=np.asarray(whole.test_images),
        test_labels=np.asarray(whole.test_labels),
      )


def figures(sizes, args):
  """A dict of each run that has ended: which it is, and MEASURED of it."""
  found = []
  for size, seed in itertools.product(sizes, range(args.seeds)):
    for workdir, _ in jobs(size, seed, args):
      if (workdir / "result.json").is_file():
        result = files.read_json(workdir / "result.json")
        about = {"images": size, "seed": seed, "run": workdir.name}
        found.append(about | {k: result[k] for k in MEASURED if k in result})
  return found


def of_kind(rows, size, kind):
  """Top-1 of each seed of a kind, of `figures`."""
  return [x["top1"] for x in rows if (x["images"], x["run"]) == (size, kind)]


def table(sizes, rows):
  """The table in Markdown, of `figures`."""
  lines = [
    f"| images | {' | '.join(KINDS.values())} | seeds | minutes a seed |",
    "|---|" + "---|" * (len(KINDS) + 2),
  ]
  for size in sizes:
    found = [of_kind(rows, size, kind) for kind in KINDS]
    cells = [cli.mean_and_spread(x) if x else "not run" for x in found]
    seeds = max(map(len, found))
    spent = sum(x["seconds"] for x in rows if x["images"] == size) / 60
    spent = f"{spent / seeds:.0f}" if seeds else "-"
    lines.append(f"| {size:,} | {' | '.join(cells)} | {seeds} | {spent} |")
  lines += ["", "Top-1 in percent of CIFAR-10's test images, last epoch."]
  return "\n".join(lines)


def draw(sizes, rows, path):
  """Draws accuracy against the number of images, each seed a point."""
  fig = figure.Figure(figsize=(6, 4), layout="constrained")
  axis = fig.subplots()
  for number, (kind, title) in enumerate(KINDS.items()):
    found = {size: of_kind(rows, size, kind) for size in sizes}
    found = {size: values for size, values in found.items() if values}
    means = [np.mean(values) for values in found.values()]
    axis.plot(list(found), means, color=f"C{number}", label=title)
    for size, values in found.items():
      axis.plot([size] * len(values), values, "o", ms=4, color=f"C{number}")
  axis.set(xscale="log", xlabel="training images", ylabel="top-1 (%)")
  axis.set_xticks(sizes, [f"{x:,}" for x in sizes])
  axis.minorticks_off()
  axis.grid(alpha=0.3)
  fig.legend(loc="outside upper center", ncols=2)
  fig.savefig(path, dpi=100)
