"""The whole method in one command: both stages, a table and a report.

  python -m vit_ssl_jax.quickstart
  python -m vit_ssl_jax.quickstart --dataset=folder:/path --budget=60m --out=Q

Pretrains without labels, then fine-tunes from the teacher and from scratch, on
all labels and on 10 % of them. The default is 1,437 handwritten digits, a few
minutes on two CPU cores. On your own images --budget is the time for all of it.
An interrupted run resumes with the same command.

Writes contact_sheet.png, summary.json, summary.png, report.html and the workdir
of each run to --out.
"""

import pathlib
import shutil
import time

import numpy as np

from vit_ssl_jax import cli, files, models, recipes, train
from vit_ssl_jax.data import load, registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import model as networks, pictures
from vit_ssl_jax.report import build, figures
from vit_ssl_jax.train import resolve

FRACTIONS = (1.0, 0.1)  # of the labels
# Shares of the budget by stage and fraction; the rest is for the report.
SHARES = {"pretrain": 0.56, 1.0: 0.13, 0.1: 0.05}
PARTS = ("prepare", "pretrain", "finetune", "report")  # timed
MAX_CLASSES = 10  # in pictures, with as many images of each


def main(argv=None):
  """Runs the command line; user errors exit with status 2."""
  parser = cli.Parser(
    prog="python -m vit_ssl_jax.quickstart", description=__doc__
  )
  option = parser.add_argument
  option("--dataset", default="digits", help="folder:/path or npz:/path/x.npz")
  option("--budget", default="60m", help="for your own images; %(default)s")
  option("--out", type=pathlib.Path, default="runs/quickstart")
  option("--arch", default="vit", choices=tuple(models.ARCHITECTURES))
  option("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  with cli.reporting_errors():
    cli.configure()
    print_summary(quickstart(args), args.out)


def quickstart(args):
  """Trains, evaluates and reports; returns the content of summary.json."""
  budget, out, laps = parse_budget(args), args.out, [time.perf_counter()]
  prepare_folder(out)
  if budget:
    cli.log(f"about {cli.duration(budget)}, from --budget={args.budget}")
  config = make_config("pretrain", args, budget)
  config = resolve.resolve(config, out / "pretrain")
  draw_contact_sheet(config, out / "contact_sheet.png")
  # Before any training, so that a budget that is too small shows at once.
  tunings = {x: tuning_config(config, args, budget, x) for x in FRACTIONS}
  laps.append(time.perf_counter())
  cli.log(f"[1/{1 + 2 * len(FRACTIONS)}] pretraining without labels")
  pretrained = train.run(config, out / "pretrain")
  laps.append(time.perf_counter())
  runs, workdirs, seconds = finetune(tunings, out)
  laps.append(time.perf_counter())
  draw_summary(out / "summary.png", config, out / "pretrain", workdirs)
  report = map(build.read_run, (out / "pretrain", *workdirs.values()))
  files.write(out / "report.html", build.build(list(report)))
  laps.append(time.perf_counter())
  # More than this process took if runs were resumed.
  seconds += pretrained["seconds"]
  parts = zip(PARTS, np.diff(laps), strict=True)
  summary = {
    "runs": runs,
    **{k: x for k, x in pretrained.items() if k.startswith("knn")},
    "seconds": round(max(laps[-1] - laps[0], seconds), 1),
    "parts": {name: round(float(x), 1) for name, x in parts},
  }
  files.write_json(out / "summary.json", summary)
  return summary


def prepare_folder(out):
  """Creates the folder, or empties it if an earlier quickstart finished."""
  if (out / "summary.json").exists():
    (out / "summary.json").unlink()
    for path in (out / "pretrain", *out.glob("finetune_*")):
      shutil.rmtree(path, ignore_errors=True)
  out.mkdir(parents=True, exist_ok=True)


def parse_budget(args):
  """The budget in seconds, or None for digits, which need none."""
  if args.dataset == "digits":
    return None
  if registry.get(args.dataset) is not registry.OWN:
    raise UserError(
      f"--dataset={args.dataset!r} must be digits, folder:/path or"
      " npz:/path/file.npz; python -m main trains on the other sets"
    )
  seconds = resolve.seconds_of(args.budget)
  if seconds is None:
    raise UserError(f"--budget={args.budget!r} must be a time, such as 60m")
  return seconds


def make_config(stage, args, budget, fraction=1.0):
  """A stage's recipe for a fraction of the labels and a share of the budget."""
  config = recipes.get(stage, f"{args.arch},{args.dataset}")
  config.seed = config.split_seed = args.seed
  if budget:
    share = SHARES["pretrain" if stage == "pretrain" else fraction]
    config.budget = f"{round(budget * share)}s"
  if stage == "finetune":
    config.data_fraction = fraction
    if not budget:
      # A tenth of the labels gets a third of the steps, not a tenth, so that
      # training from scratch is a fair baseline.
      config.optim.warmup_epochs = 5  # as with all labels
      config.epochs = round(config.epochs / fraction**0.5)
      config.evaluate_every_epochs = config.epochs // 8
  return config


def tuning_config(config, args, budget, fraction):
  """The complete config of a fine-tuning with the network of `config`."""
  tuning = make_config("finetune", args, budget, fraction)
  tuning.model.update(config.model)
  try:
    return resolve.resolve(tuning, workdir(args.out, "scratch", fraction))
  except UserError as e:
    run = f"fine-tuning on {fraction:.0%} of the labels"
    raise UserError(f"{run}, within --budget={args.budget}: {e}") from e


def workdir(out, source, fraction):
  return out / f"finetune_{source}_{round(100 * fraction)}"


def finetune(tunings, out):
  """Fine-tunes on each fraction: `runs` of the summary, workdirs, seconds."""
  runs, workdirs, seconds = [], {}, 0.0
  for fraction, tuning in tunings.items():
    runs.append({"label_fraction": fraction})
    for source in ("scratch", "pretrained"):
      title = f"{source}, {fraction:.0%} of the labels"
      number = f"[{len(workdirs) + 2}/{1 + 2 * len(tunings)}]"
      cli.log(f"{number} fine-tuning, {title}")
      tuning.init_from = str(out / "pretrain") if source != "scratch" else ""
      workdirs[title] = workdir(out, source, fraction)
      result = train.run(tuning, workdirs[title])
      runs[-1][f"top1_{source}"] = result["top1"]
      seconds += result["seconds"]
  return runs, workdirs, seconds


def draw_contact_sheet(config, path):
  """Draws training images of each class, and views of one, before training."""
  dataset = load.load_config(config)
  labels = np.asarray(dataset.train_labels)
  members = {
    name: np.flatnonzero(labels == i)
    for i, name in enumerate(dataset.classes[:MAX_CLASSES])
  }
  counts = [f"{name} {len(x):,}" for name, x in members.items()]
  if more := len(dataset.classes) - len(counts):
    counts.append(f"{more} more classes")
  cli.log(f"training images: {', '.join(counts)}")
  rows = [
    (name, dataset.train_images[x[:MAX_CLASSES]]) for name, x in members.items()
  ]
  figures.draw_contact_sheet(config, rows).savefig(path, dpi=90)
  cli.log(f"training images and their views: {path}")


def draw_summary(path, config, pretraining, finetunings):
  """Draws the curves, and the teacher's attention on an image of each class."""
  teacher = networks.read(pretraining)
  images = pictures.examples(teacher.load_data(), MAX_CLASSES)
  maps = teacher.attention(images, MAX_CLASSES).mean(1)
  fig = figures.draw_summary(config, images, maps, pretraining, finetunings)
  fig.savefig(path, dpi=100)


def print_summary(summary, out):
  """Prints the summary as a table."""
  rows = []
  for run in summary["runs"]:
    fraction, scratch, pretrained = run.values()
    rows.append((f"{fraction:.0%}", scratch, pretrained, pretrained - scratch))
  header = ("labels", "top-1, %: scratch", "pretrained", "gain")
  print(f"\n{cli.table(header, rows)}\n")
  print(
    f"k-NN on features, %: teacher {summary['knn']:.2f},"
    f" raw pixels {summary['knn_raw_pixels']:.2f},"
    f" untrained network {summary['knn_untrained']:.2f}"
  )
  print(f"{cli.duration(summary['seconds'])}; see {out}/report.html")


if __name__ == "__main__":
  main()
