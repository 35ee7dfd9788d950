"""Accuracy against the number of images, by our recipe and the paper's.

  python benchmarks/small_sets.py --workdir=R --seeds=3 [--sizes=500,1000]

Trains on balanced subsets of CIFAR-10, prints a table and leaves
small_sets.jsonl and .png in R. All runs on a subset have the same small network
and the same number of image passes in each stage; the recipes differ in
everything else. Patches are twice as large as in our recipe, to save time.
"""

import argparse
import json
import math
import pathlib

import numpy as np
from matplotlib import figure

from vit_ssl_jax import cli, files, recipes, reproduce
from vit_ssl_jax.data import load
from vit_ssl_jax.data.facts import Facts
from vit_ssl_jax.recipes import custom, schema

SIZES = (500, 1000, 2500, 5000, 10_000)
# Name of the fine-tuning's workdir -> title.
KINDS = {
  "scratch": "from scratch, our recipe",
  "scratch_paper": "from scratch, the paper's recipe",
  "paper": "pretrained, the paper's recipe",
  "own": "pretrained, our recipe",
}
# Of result.json: top-1 or k-NN in percent, seconds.
FIGURES = ("top1", "knn", "knn_raw_pixels", "knn_untrained", "seconds")
IMAGE_PASSES = {"pretrain": 200_000, "finetune": 100_000}
PATCH_SIZE = 8
# Keys with the same value in both recipes.
SHARED = ("model.", "views.global_size", "views.local_size", "dataset")
SHARED += ("budget", "mean", "std", "evaluate_every_epochs")


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
  args = parser.parse_args()
  sizes, seeds = list(map(int, args.sizes.split(","))), range(args.seeds)
  with cli.reporting_errors():
    make_subsets(args.workdir, sizes)
    plan = {(n, s): jobs(args.workdir, n, s) for n in sizes for s in seeds}
    reproduce.run_missing(plan)
    rows = list(read_results(plan))
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    files.write(args.workdir / "small_sets.jsonl", lines)
    draw(args.workdir / "small_sets.png", sizes, rows)
    print(table(sizes, rows))


def jobs(root, size, seed):
  """(workdir, command) of each run on a subset, in order."""
  folder = root / f"small_{size}_seed{seed}"
  runs = [
    ("scratch", "finetune", False, None),
    ("scratch_paper", "finetune", True, None),
    ("teacher", "pretrain", False, None),
    ("own", "finetune", False, "teacher"),
    ("teacher_paper", "pretrain", True, None),
    ("paper", "finetune", True, "teacher_paper"),
  ]
  commands = []
  for name, stage, paper, init in runs:
    arg = f"vit,npz:{subset(root, size)}"
    values = recipe(arg, size, stage, paper) | {"seed": seed}
    if init:
      values["init_from"] = folder / init
    command = reproduce.train(stage, arg, folder / name, values)
    commands.append((folder / name, command))
  return commands


def recipe(arg, size, stage, paper):
  """key -> value where a run differs from the recipe of `arg`."""
  default = schema.flat(recipes.get(stage, arg))
  config = recipes.get(stage, arg)
  config.model.patch_size = PATCH_SIZE
  passes = IMAGE_PASSES[stage]
  custom.resolve(config, Facts(size, 10, 32), small=True, passes=passes)
  config.evaluate_every_epochs = max(1, config.epochs // 4)
  values = schema.flat(config)
  if paper:
    theirs = recipes.get(stage, "vit,cifar10")
    theirs.epochs = config.epochs  # warm-ups follow
    theirs.batch_size = min(theirs.batch_size, 2 ** int(math.log2(size / 2)))
    values |= {
      key: value
      for key, value in schema.flat(theirs).items()
      if key in values and not key.startswith(SHARED)
    }
  return {key: x for key, x in values.items() if x != default[key]}


def subset(root, size):
  return (root / f"cifar10_{size}.npz").absolute()


def make_subsets(root, sizes):
  """Writes missing subsets; each contains the smaller ones."""
  missing = [size for size in sizes if not subset(root, size).exists()]
  if not missing:
    return
  cifar10 = load.load("cifar10", 32)
  labels = np.asarray(cifar10.train_labels)
  rng = np.random.default_rng(0)
  order = [rng.permutation(np.flatnonzero(labels == i)) for i in range(10)]
  root.mkdir(parents=True, exist_ok=True)
  for size in missing:
    rows = np.sort(np.concatenate([x[: size // 10] for x in order]))
    with files.atomic_write(subset(root, size)) as path, path.open("wb") as f:
      np.savez(
        f,
        train_images=np.asarray(cifar10.train_images[rows]),
        train_labels=labels[rows],
        test_images=np.asarray(cifar10.test_images),
        test_labels=np.asarray(cifar10.test_labels),
      )


def read_results(plan):
  """A dict of FIGURES for each run with a result."""
  for (size, seed), commands in plan.items():
    for workdir, _ in commands:
      if result := reproduce.read_json(workdir / "result.json"):
        run = {"images": size, "seed": seed, "run": workdir.name}
        yield run | {key: result[key] for key in FIGURES if key in result}


def top1(rows, size, kind):
  return [x["top1"] for x in rows if (x["images"], x["run"]) == (size, kind)]


def table(sizes, rows):
  """Mean top-1 in Markdown."""
  lines = [f"| images | {' | '.join(KINDS.values())} |", "|---" * 5 + "|"]
  for size in sizes:
    seeds = [top1(rows, size, kind) for kind in KINDS]
    cells = [cli.mean_and_spread(x) if x else "not run" for x in seeds]
    lines.append(f"| {size:,} | {' | '.join(cells)} |")
  return "\n".join(lines)


def draw(path, sizes, rows):
  """Plots mean top-1 against the number of images, with a dot a seed."""
  fig = figure.Figure(figsize=(6, 4), layout="constrained")
  axis = fig.subplots()
  for number, (kind, title) in enumerate(KINDS.items()):
    points = [(n, x) for n in sizes for x in top1(rows, n, kind)]
    means = [np.mean(x) for n in sizes if (x := top1(rows, n, kind))]
    measured = sorted({n for n, _ in points})
    axis.plot(measured, means, color=f"C{number}", label=title)
    if points:
      axis.plot(*zip(*points, strict=True), "o", ms=4, color=f"C{number}")
  axis.set(xscale="log", xlabel="training images", ylabel="top-1 (%)")
  axis.set_xticks(sizes, [f"{x:,}" for x in sizes])
  axis.minorticks_off()
  axis.grid(alpha=0.3)
  fig.legend(loc="outside upper center", ncols=2)
  fig.savefig(path, dpi=100)


if __name__ == "__main__":
  main()
