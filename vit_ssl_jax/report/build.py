"""Builds one HTML page of finished runs.

  python -m vit_ssl_jax.report A B SCRATCH --out=report.html

RUN is a workdir of either stage, with a result. The page is one file that needs
no network. It has curves, accuracy side by side (of runs that differ in their
seeds alone the mean, its 95 % confidence interval and each seed), the gain of
pretraining, views of one image, attention maps, features, the confusion matrix
and the most confident mistakes of classifiers, and the commands that repeat the
runs.
"""

import os
import pathlib

import matplotlib as mpl
import ml_collections
import numpy as np
import scipy.special
from matplotlib.figure import Figure

from vit_ssl_jax import cli, files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import model, pictures
from vit_ssl_jax.evaluate.metrics import classification
from vit_ssl_jax.recipes import schema
from vit_ssl_jax.report import figures, page, seeds
from vit_ssl_jax.run import metrics, workdir as workdirs

BATCH = 512
ATTENTION_IMAGES = 6
MISTAKES = 12
FEATURE_IMAGES = 1000  # test images at most, in the plots of features


def main(argv=None):
  """Runs the command line."""
  parser = cli.Parser(prog="python -m vit_ssl_jax.report", description=__doc__)
  parser.add_argument("runs", nargs="+", metavar="RUN")
  parser.add_argument("--out", default="report.html", help="%(default)s")
  parser.add_argument(
    "--data_dir", default="", help="where TFDS keeps its sets"
  )
  args = parser.parse_args(argv)
  with cli.reporting_errors():
    cli.configure()
    text = build([read_run(path) for path in args.runs], args.data_dir)
    files.write(pathlib.Path(args.out), text)
    cli.log(f"{args.out}: {len(text) / 1e6:.1f} MB")


def read_run(path):
  """Reads a run: workdir, config, result, lines of metrics, command.

  Raises:
    UserError: not a workdir, or it has no result.
  """
  workdir = pathlib.Path(path)
  if not workdir.is_dir():
    raise UserError(f"there is no run {path}: no such folder")
  config = schema.read_config(workdir)
  if not (workdir / "result.json").is_file():
    raise UserError(f"{path} has no result.json: the run has not finished")
  result = files.read_json(workdir / "result.json")
  if config["stage"] == "finetune" and "top1" not in result:
    raise UserError(f"{path} was trained in memory, without test images")
  return {
    "workdir": workdir,
    "config": config,
    "result": result,
    "lines": metrics.read(workdir),
    "command": workdirs.command(workdir),
  }


def build(runs, data_dir=""):
  """Builds the page, HTML, of runs of `read_run`."""
  with mpl.rc_context(page.STYLE):
    runs = with_titles(runs)
    sections = [summarize(runs)]
    tuned = [x for x in runs if x["config"]["stage"] == "finetune"]
    pretrained = [x for x in runs if x["config"]["stage"] == "pretrain"]
    if tuned:
      sections.append(compare(tuned))
    for title, group in (("Pretraining", pretrained), ("Fine-tuning", tuned)):
      curves = figures.draw_curves({x["title"]: x["lines"] for x in group})
      if curves:
        sections.append(page.Section(title))
        sections[-1].curves(curves)
    with cli.progress_bar(len(runs), "run", label="report") as bar:
      for run in runs:
        sections.append(inspect(run, data_dir))
        bar.update()
    sections.append(commands(runs))
    datasets = ", ".join(sorted({x["config"]["dataset"] for x in runs}))
    archs = ", ".join(sorted({x["config"]["model"]["name"] for x in runs}))
    subtitle = f"{archs} on {datasets}; by vit-ssl-jax"
    return page.render("Training from a small data set", subtitle, sections)


def with_titles(runs):
  """Adds titles: workdirs relative to the folder that all runs share."""
  folders = [run["workdir"].absolute() for run in runs]
  if len(set(folders)) < len(folders):
    raise UserError("a run is given twice")
  common = os.path.commonpath([folder.parent for folder in folders])
  return [
    run | {"title": str(folder.relative_to(common))}
    for run, folder in zip(runs, folders, strict=True)
  ]


def summarize(runs):
  """Builds the table of runs."""
  section, rows = page.Section("Runs"), []
  for run in runs:
    config, result = run["config"], run["result"]
    stage = "pretraining"
    if config["stage"] == "finetune":
      stage = f"fine-tuning, {seeds.SOURCES[bool(config.get('init_from'))]}"
    size = f"{result.get('parameters', 0):,}"
    keys = ("knn", "knn_raw_pixels", "knn_untrained", "top1")
    minutes = f"{result['seconds'] / 60:.1f}"
    devices = ", ".join(sorted(set(result["devices"])))
    row = (run["title"], stage, size, result["epoch"], *map(result.get, keys))
    rows.append((*row, minutes, devices))
  header = ("run", "stage", "parameters", "epochs", "k-NN", "raw pixels")
  section.table((*header, "untrained", "top-1", "minutes", "device"), rows)
  section.note(
    "Accuracy in percent. k-NN: on the teacher's features; baselines: on raw"
    " pixels and on features of the untrained network. top-1: after the last"
    " epoch, on every test image once."
  )
  return section


def compare(runs):
  """Builds the accuracy of fine-tunings over seeds."""
  section = page.Section("Accuracy")
  groups = seeds.group(runs)
  accuracies, gains = seeds.accuracies(groups), seeds.gains(groups)
  section.curves([figures.draw_bars(accuracies)])
  header = ("seeds", "mean top-1, %", "standard deviation", "95 % interval")
  section.table(("runs", *header), seeds.rows(accuracies))
  section.note(seeds.NOTE)
  if gains:
    header = ("seeds", "mean, points", "standard deviation", "95 % interval")
    section.table(("gain of pretraining", *header), seeds.rows(gains, "+"))
    section.note(seeds.PAIRED)
  return section


def inspect(run, data_dir):
  """Builds the views, attention maps, features and mistakes of a run."""
  section = page.Section(run["title"])
  network = model.read(str(run["workdir"]), data_dir=data_dir)
  dataset = network.load_data()
  if run["config"]["stage"] == "pretrain":
    fig = Figure(figsize=(12, 1.8), layout="constrained")
    config = ml_collections.ConfigDict(run["config"])
    figures.draw_views(fig, config, pictures.examples(dataset, 1)[0])
    section.picture("views", fig)
  section.note("Attention of the last block, averaged and head by head.")
  section.picture(
    "attention", pictures.attention({"mean": network}, dataset, 6)
  )
  if len(dataset.test_labels) >= 10:
    section.note("Features of test images, by class.")
    fig = pictures.features(network, dataset, BATCH, FEATURE_IMAGES)
    section.picture("features", fig)
  if run["config"]["stage"] == "finetune":
    add_mistakes(section, network, dataset)
  return section


def add_mistakes(section, network, dataset):
  """Adds the confusion matrix and the most confident mistakes."""
  logits = network.logits(dataset.test_images, BATCH)
  labels, classes = np.asarray(dataset.test_labels), network.classes
  scores = classification(logits, labels)
  section.note(
    f"Top-1 on {len(labels):,} test images: {scores['top1']:.2f} %; expected"
    f" calibration error: {scores['calibration_error']:.1f} %."
  )
  fig = figures.draw_confusion(scores["confusion"], classes)
  section.picture("confusion", fig)
  predictions = logits.argmax(-1)
  confidence = scipy.special.softmax(logits.astype(float), -1).max(-1)
  wrong = np.flatnonzero(predictions != labels)
  worst = wrong[np.argsort(-confidence[wrong])][:MISTAKES]
  if len(worst):
    images = np.asarray(dataset.test_images[worst])
    about = labels[worst], predictions[worst], confidence[worst]
    section.note("The most confident mistakes.")
    fig = figures.draw_mistakes(images, *about, classes)
    section.picture("mistakes", fig)


def commands(runs):
  """Builds the commands, versions and digests of runs."""
  section = page.Section("How to repeat it")
  for run in runs:
    section.code(run["command"] or f"{run['title']}: its command is unknown")
    versions = run["result"].get("versions", {})
    section.note(", ".join(f"{k} {v}" for k, v in versions.items()))
    digest = run["result"].get("state_sha256", "")
    section.note(f"state_sha256 {digest}")
  return section
