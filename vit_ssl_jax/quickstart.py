"""The whole method in one command: both stages, a table and a report.

  python -m vit_ssl_jax.quickstart
  python -m vit_ssl_jax.quickstart --dataset=folder:/path --budget=60m --out=Q

Pretrains without labels, then fine-tunes the teacher and a fresh network, on
all labels and on 10 % of them. Without --dataset it takes 1,437 handwritten
digits and a few minutes. With images of your own --budget is how long all of it
may take. What was stopped goes on with the same command.

It leaves contact_sheet.png, summary.json, summary.png and report.html in --out,
and a workdir of each run.
"""

import json
import pathlib
import shutil
import time

import numpy as np

from vit_ssl_jax import cli, files, models, recipes
from vit_ssl_jax.data import inputs, registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import backbone as backbones
from vit_ssl_jax.recipes import common
from vit_ssl_jax.report import build as report, figures
from vit_ssl_jax.train import budget as budgets, finetune, pretrain

FRACTIONS = (1.0, 0.1)  # of the labels
# Of the budget; what is left is for the report.
SHARES = {"pretrain": 0.56, 1.0: 0.13, 0.1: 0.05}
SHOWN = 10  # classes


def main(argv=None):
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  parser = cli.Parser(
    prog="python -m vit_ssl_jax.quickstart", description=__doc__
  )
  option = parser.add_argument
  option("--dataset", default="digits", help="folder:/path or npz:/path/x.npz")
  option("--budget", default="60m", help="of your own images; %(default)s")
  option("--out", type=pathlib.Path, default="runs/quickstart")
  option("--arch", default="vit", choices=tuple(common.MODELS))
  option("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  with cli.reporting_errors():
    cli.configure()
    show(quickstart(args), args.out)


def quickstart(args):
  """Runs all of it and writes the summary; returns what summary.json holds.

  Raises:
    UserError: the images or the budget cannot be taken.
  """
  begin = time.perf_counter()
  seconds = check(args)
  out, count = args.out, 1 + 2 * len(FRACTIONS)
  if (out / "summary.json").exists():  # it has finished, and starts anew
    (out / "summary.json").unlink()
    for path in (out / "pretrain", *out.glob("finetune_*")):
      shutil.rmtree(path, ignore_errors=True)
  out.mkdir(parents=True, exist_ok=True)
  if seconds:
    cli.log(f"about {cli.duration(seconds)} in all, by --budget={args.budget}")

  config = make_config("pretrain", args, seconds)
  config = budgets.complete(config, out / "pretrain", pretrain.make_stage)
  preview(config, out / "contact_sheet.png")
  tunings = {}  # before anything is trained, so that it is known to fit
  for fraction in FRACTIONS:
    tuning = make_config("finetune", args, seconds, fraction)
    tuning.model.update(config.model)
    workdir = out / folder("scratch", fraction)
    try:
      tuning = budgets.complete(tuning, workdir, finetune.make_stage)
    except UserError as e:
      share = f"fine-tuning on {fraction:.0%} of the labels"
      raise UserError(f"{share}, within --budget={args.budget}: {e}") from e
    tunings[fraction] = tuning

  cli.log(f"[1/{count}] pretraining without labels")
  pretrained = pretrain.run(config, out / "pretrain")

  runs, spent, curves, number = [], pretrained["seconds"], {}, 1
  for fraction in FRACTIONS:
    runs.append({"label_fraction": fraction})
    tuning = tunings[fraction]
    for source in ("scratch", "pretrained"):
      number += 1
      title = f"{source}, {fraction:.0%} of the labels"
      cli.log(f"[{number}/{count}] fine-tuning, {title}")
      tuning.init_from = str(out / "pretrain") if source != "scratch" else ""
      workdir = out / folder(source, fraction)
      result = finetune.run(tuning, workdir)
      runs[-1][f"top1_{source}"] = result["top1"]
      spent += result["seconds"]
      curves[title] = workdir
  draw(out / "summary.png", config, out / "pretrain", curves)
  workdirs = (out / "pretrain", *curves.values())
  page = report.build([report.read_run(path) for path in workdirs])
  files.write(out / "report.html", page)
  # The runs' own time is more where they were stopped and went on.
  total = round(max(time.perf_counter() - begin, spent), 1)
  summary = {
    "runs": runs,
    **{k: x for k, x in pretrained.items() if k.startswith("knn")},
    "seconds": total,
  }
  files.write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
  return summary


def folder(source, fraction):
  """The name of a fine-tuning's workdir."""
  return f"finetune_{source}_{round(100 * fraction)}"


def check(args):
  """The budget in seconds, or None for digits, which need none.

  Raises:
    UserError: the data set or the budget is none that can be taken.
  """
  if args.dataset == "digits":
    return None
  if registry.get(args.dataset) is not registry.OWN:
    raise UserError(
      f"--dataset={args.dataset} has to be digits, folder:/path or"
      " npz:/path/file.npz; python -m main trains on the other sets"
    )
  seconds = budgets.seconds_of(args.budget)
  if seconds is None:
    raise UserError(f"--budget={args.budget} has to be a time, such as 60m")
  return seconds


def make_config(stage, args, seconds, fraction=1.0):
  """A stage's recipe, on a share of the labels and within its budget."""
  config = recipes.get(stage, f"{args.arch},{args.dataset}")
  config.seed = config.split_seed = args.seed
  if seconds:
    share = SHARES["pretrain" if stage == "pretrain" else fraction]
    config.budget = f"{round(seconds * share)}s"
  if stage == "finetune":
    config.data_fraction = fraction
  if stage == "finetune" and not seconds:
    # A tenth of the labels gets a third of the steps, not a tenth, so that
    # training from scratch has its chance too.
    config.optim.warmup_epochs = 5  # as with all labels
    config.epochs = round(config.epochs / fraction**0.5)
    config.evaluate_every_epochs = config.epochs // 8
  return config


def preview(config, path):
  """Draws some images of each class, and views of one, before it starts."""
  dataset = inputs.load(config)
  labels = np.asarray(dataset.train_labels)
  counts = np.bincount(labels, minlength=len(dataset.classes))
  named = [
    f"{name} {count:,}"
    for name, count in zip(dataset.classes, counts, strict=True)
  ]
  more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
  cli.log(f"training images: {', '.join(named[:SHOWN])}{more}")
  rows = [
    (name, dataset.train_images[np.flatnonzero(labels == i)[:SHOWN]])
    for i, name in enumerate(dataset.classes[:SHOWN])
  ]
  figures.draw_contact_sheet(config, rows).savefig(path, dpi=90)
  cli.log(f"what it will see: {path}")


def draw(path, config, pretraining, curves):
  """Draws the summary's picture, on one test image of each class."""
  backbone, dataset = backbones.read(pretraining)
  _, first = np.unique(dataset.test_labels, return_index=True)
  images = np.asarray(dataset.test_images[first[:SHOWN]])
  maps = models.attention_maps(backbone.apply("attention")(images)).mean(1)
  fig = figures.draw_summary(config, images, maps, pretraining, curves)
  fig.savefig(path, dpi=100)


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
  print(cli.table(("labels", "scratch", "pretrained", "gain"), rows))
  print("top-1 on the test images, in percent")
  print(
    f"\nk-NN on the teacher's features: {summary['knn']:.2f} %; on raw pixels"
    f" {summary['knn_raw_pixels']:.2f} %, on the untrained network's features"
    f" {summary['knn_untrained']:.2f} %"
  )
  print(f"{cli.duration(summary['seconds'])}; see {out}/report.html")


if __name__ == "__main__":
  main()
