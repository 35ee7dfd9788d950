"""The main job on 1,437 handwritten digits, in a few minutes.

Pretrains a small transformer without labels, then fine-tunes it and a fresh
one, on all labels and on 10 % of them. Leaves summary.json and summary.png.
"""

import argparse
import itertools
import json
import pathlib
import shutil
import time

import ml_collections

from configs import (
  common,
  finetune as finetune_recipe,
  pretrain as pretrain_recipe,
)
from vit_ssl_jax import cli, files
from vit_ssl_jax.data import load
from vit_ssl_jax.report import __main__ as report, pictures, tables
from vit_ssl_jax.run import checkpoints
from vit_ssl_jax.train import finetune, pretrain

FRACTIONS = (1.0, 0.1)  # of the labels
SOURCES = ("scratch", "pretrained")


def quickstart(out, arch, seed):
  """Runs all of it and writes the summary; returns what summary.json holds.

  What was stopped goes on; what is finished starts anew.
  """
  begin = time.perf_counter()
  if (out / "summary.json").exists():
    shutil.rmtree(out)
  count = 1 + len(FRACTIONS) * len(SOURCES)
  cli.say(f"[1/{count}] pretraining without labels")
  config = pretrain_recipe.get_config(f"{arch},digits")
  config.seed = seed
  pretrained = pretrain.run(config, out / "pretrain")
  runs = [{"label_fraction": fraction} for fraction in FRACTIONS]
  seconds, curves = pretrained["seconds"], {}
  for i, (run, source) in enumerate(itertools.product(runs, SOURCES), 2):
    fraction = run["label_fraction"]
    title = f"{source}, {fraction:.0%} of the labels"
    cli.say(f"[{i}/{count}] fine-tuning, {title}")
    config = finetune_config(arch, seed, fraction)
    if source == "pretrained":
      config.init_from = str(out / "pretrain")
    workdir = out / f"finetune_{source}_{round(100 * fraction)}"
    result = finetune.run(config, workdir)
    run[f"top1_{source}"] = result["top1"]
    seconds += result["seconds"]
    curves[title] = workdir
  draw(out / "summary.png", out / "pretrain", curves)
  shown = [report.read(path) for path in (out / "pretrain", *curves.values())]
  files.write(out / "report.html", report.make(shown, ""))
  # The runs' own time is more where they were stopped and went on.
  seconds = round(max(time.perf_counter() - begin, seconds), 1)
  summary = {"runs": runs, "knn": pretrained["knn"], "seconds": seconds}
  files.write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
  return summary


def finetune_config(arch, seed, fraction):
  """The recipe for digits, on a share of the labels."""
  config = finetune_recipe.get_config(f"{arch},digits")
  config.update(seed=seed, data_fraction=fraction)
  config.split_seed = seed  # other labels for each seed
  # A tenth of the labels gets a third of the steps, not a tenth, so that
  # training from scratch has its chance too.
  config.epochs = round(config.epochs / fraction**0.5)
  config.evaluate_every_epochs = config.epochs // 8
  return config


def draw(path, pretraining, curves):
  """Draws the summary's picture, on one test image of each digit."""
  state, config = checkpoints.read(pretraining)
  config = ml_collections.ConfigDict(config)
  digits = load.load("digits", config.model.image_size, progress=False)
  first = [int((digits.test_labels == label).argmax()) for label in range(10)]
  images = digits.test_images[first]
  params = state["teacher"]["backbone"]
  pictures.summary(path, config, params, images, pretraining, curves)


def show(summary, out):
  """Prints the summary as a table."""
  rows = [
    (
      f"{run['label_fraction']:.0%}",
      run["top1_scratch"],
      run["top1_pretrained"],
      run["top1_pretrained"] - run["top1_scratch"],
    )
    for run in summary["runs"]
  ]
  print()
  print(tables.table(("labels", "scratch", "pretrained", "gain"), rows))
  print("top-1 on 360 test images, in percent")
  print(f"\nk-NN on the teacher's features: {summary['knn']:.2f} %")
  print(f"{summary['seconds']:.0f} seconds; see {out}/report.html")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, default="runs/quickstart")
  parser.add_argument("--arch", default="vit", choices=tuple(common.MODELS))
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  cli.set_up()
  with cli.reporting_errors():
    show(quickstart(args.out, args.arch, args.seed), args.out)
