"""The main job on 1,437 handwritten digits, in a few minutes.

Pretrains a small transformer without labels, then fine-tunes it and a fresh
one, on all labels and on 10 % of them. Leaves summary.json and summary.png.
"""

import argparse
import json
import pathlib
import shutil
import time

import ml_collections

from configs import (
  common,
  finetune as finetune_config,
  pretrain as pretrain_config,
)
from vit_ssl_jax import cli, files
from vit_ssl_jax.data import load
from vit_ssl_jax.report import pictures, tables
from vit_ssl_jax.run import checkpoints
from vit_ssl_jax.train import finetune, pretrain

FRACTIONS = (1.0, 0.1)
# How the time divides, to say how much is left: pretraining, then each
# fine-tuning; measured with ViT on two cores.
SHARES = {"pretrain": 0.75, 1.0: 0.08, 0.1: 0.04}


def quickstart(out, arch, seed):
  """Runs all of it and writes the summary; returns what summary.json holds."""
  begin = time.perf_counter()
  if (out / "summary.json").exists():
    shutil.rmtree(
      out
    )  # a finished quickstart starts anew, a stopped one goes on
  plan = Plan(1 + 2 * len(FRACTIONS))
  plan.announce("pretraining without labels", SHARES["pretrain"])
  config = pretrain_config.get_config(f"{arch},digits")
  config.seed = seed
  pretrained = out / "pretrain"
  results = [pretrain.run(config, pretrained)]
  knn = results[0]["knn"]
  runs, curves = [], {}
  for fraction in FRACTIONS:
    top1 = {}
    for name, source in (("scratch", ""), ("pretrained", str(pretrained))):
      title = f"{name}, {fraction:.0%} of the labels"
      plan.announce(f"fine-tuning, {title}", SHARES[fraction])
      workdir = out / f"finetune_{name}_{round(100 * fraction)}"
      tuning = finetune_config.get_config(f"{arch},digits")
      tuning.update(seed=seed, init_from=source, data_fraction=fraction)
      tuning.split_seed = seed  # other labels for each seed
      # A tenth of the labels gets a third of the steps, not a tenth, so that
      # training from scratch has its chance too.
      tuning.epochs = round(tuning.epochs / fraction**0.5)
      tuning.evaluate_every_epochs = tuning.epochs // 8
      results.append(finetune.run(tuning, workdir))
      top1[f"top1_{name}"] = results[-1]["top1"]
      curves[title] = workdir
    runs.append({"label_fraction": fraction, **top1})
  draw(out / "summary.png", pretrained, curves)
  trained = sum(result["seconds"] for result in results)
  seconds = max(time.perf_counter() - begin, trained)
  summary = {"runs": runs, "knn": knn, "seconds": round(seconds, 1)}
  files.write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
  return summary


class Plan:
  """Says what comes next, and how long the rest will take."""

  def __init__(self, count):
    self.count, self.number, self.done = count, 0, 0.0
    self.begin = time.perf_counter()
    self.share = 0.0

  def announce(self, title, share):
    self.number += 1
    self.done += self.share
    self.share = share
    passed = time.perf_counter() - self.begin
    left = passed / self.done * (1 - self.done) if self.done else None
    about = f", about {left / 60:.1f} minutes left" if left else ""
    cli.say(f"[{self.number}/{self.count}] {title}{about}")


def draw(path, pretrained, curves):
  """Draws the summary's picture, on one test image of each digit."""
  state, config = checkpoints.read(pretrained)
  config = ml_collections.ConfigDict(config)
  digits = load.load("digits", config.model.image_size, progress=False)
  first = [int((digits.test_labels == label).argmax()) for label in range(10)]
  pictures.summary(
    path,
    config,
    state["teacher"]["backbone"],
    digits.test_images[first],
    pretrained,
    curves,
  )


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
  print(f"{summary['seconds']:.0f} seconds; see {out}/summary.png")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, default="runs/quickstart")
  parser.add_argument("--arch", default="vit", choices=tuple(common.MODELS))
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  cli.set_up()
  with cli.reporting_errors():
    show(quickstart(args.out, args.arch, args.seed), args.out)
