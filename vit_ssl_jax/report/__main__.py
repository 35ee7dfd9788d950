"""Makes one page of runs: what they were, how they went, what they see.

  python -m vit_ssl_jax.report A B SCRATCH --out=report.html

RUN is a workdir of either stage, with a result. The page is one file that needs
no network: how to repeat each run, curves, accuracy side by side (of runs that
differ in their seeds alone the mean with its 95 % interval, and each as a
point), the gain of pretraining, the views of one image, where the models look,
their features, and of classifiers the confusion matrix and the mistakes that
they were surest of.
"""

import os
import pathlib

import ml_collections
import numpy as np
import scipy.special
from matplotlib import figure

from vit_ssl_jax import cli, files, models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import (
  accuracy,
  attention,
  backbone as backbones,
  classifier,
  embedding,
  figures,
)
from vit_ssl_jax.recipes import schema
from vit_ssl_jax.report import curves, page, pictures, seeds
from vit_ssl_jax.run import metrics, workdir as workdirs

BATCH = 512
SHOWN = 6  # images with attention
MISTAKES = 12
MOST = 1000  # test images whose features are drawn


def main(argv=None):
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  parser = cli.Parser(prog="python -m vit_ssl_jax.report", description=__doc__)
  parser.add_argument("runs", nargs="+", metavar="RUN")
  parser.add_argument("--out", default="report.html", help="%(default)s")
  parser.add_argument(
    "--data_dir", default="", help="where TFDS keeps its sets"
  )
  args = parser.parse_args(argv)
  with cli.reporting_errors():
    cli.configure()
    runs = [read(path) for path in args.runs]
    if len({run["title"] for run in runs}) < len(runs):
      raise UserError("a run is named twice")
    text = make(runs, args.data_dir)
    files.write(pathlib.Path(args.out), text)
    cli.log(f"{args.out}: {len(text) / 1e6:.1f} MB")


def read(path):
  """A run: its title, config, result, lines of metrics, and command.

  Raises:
    UserError: it is no run, or has no result.
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
    "title": str(path).rstrip("/"),
    "workdir": workdir,
    "config": config,
    "result": result,
    "lines": metrics.read(workdir),
    "command": workdirs.command(workdir),
  }


def shorten(runs):
  """Takes the folder that all runs lie in out of their titles."""
  folders = [pathlib.Path(run["title"]).absolute() for run in runs]
  common = os.path.commonpath([folder.parent for folder in folders])
  for run, folder in zip(runs, folders, strict=True):
    run["title"] = str(folder.relative_to(common))


def make(runs, data_dir):
  """The page of some runs, HTML."""
  shorten(runs)
  sections = [summary(runs)]
  tuned = [run for run in runs if run["config"]["stage"] == "finetune"]
  pretrained = [run for run in runs if run["config"]["stage"] == "pretrain"]
  if tuned:
    sections.append(side_by_side(tuned))
  for title, some in (("Pretraining", pretrained), ("Fine-tuning", tuned)):
    drawn = curves.draw({run["title"]: run["lines"] for run in some})
    if drawn:
      sections.append(page.Section(title))
      sections[-1].curves(drawn)
  with cli.progress_bar(len(runs), "run", label="looking at") as bar:
    for run in runs:
      sections.append(look(run, data_dir))
      bar.update()
  sections.append(repeat(runs))
  names = sorted({run["config"]["dataset"] for run in runs})
  archs = sorted({run["config"]["model"]["name"] for run in runs})
  subtitle = f"{', '.join(archs)} on {', '.join(names)}; by vit-ssl-jax"
  return page.render("Training from a small data set", subtitle, sections)


def summary(runs):
  section = page.Section("Runs")
  rows = []
  for run in runs:
    config, result = run["config"], run["result"]
    source = config.get("init_from")
    stage = "pretraining"
    if config["stage"] == "finetune":
      stage = "fine-tuning, " + ("pretrained" if source else "from scratch")
    rows.append(
      (
        run["title"],
        stage,
        f"{result.get('parameters', 0):,}",
        result["epoch"],
        result.get("knn"),
        result.get("top1"),
        f"{result['seconds'] / 60:.1f}",
        ", ".join(sorted(set(result["devices"]))),
      )
    )
  header = ("run", "stage", "parameters", "epochs", "k-NN, %", "top-1, %")
  section.table((*header, "minutes", "device"), rows)
  for run in runs:
    result = run["result"]
    if {"knn", "knn_raw_pixels"} <= result.keys():
      section.note(
        f"{run['title']}: k-NN {result['knn']:.2f} %; before training"
        f" {result['knn_raw_pixels']:.2f} % of raw pixels and"
        f" {result['knn_untrained']:.2f} % of the untrained network."
      )
  section.note(
    "top-1 is that of the last epoch, on every test image once; k-NN is of the"
    " teacher's features."
  )
  return section


def side_by_side(tuned):
  """Accuracy of fine-tunings, those that differ by their seed together."""
  section = page.Section("Accuracy")
  found = seeds.groups(tuned)
  accuracies, gains = seeds.accuracies(found), seeds.gains(found)
  section.curves([curves.bars(accuracies)])
  header = ("seeds", "mean top-1, %", "standard deviation", "95 % interval")
  section.table(("runs", *header), seeds.rows(accuracies))
  section.note(seeds.NOTE)
  if gains:
    header = ("seeds", "mean, points", "standard deviation", "95 % interval")
    section.table(("gain of pretraining", *header), seeds.rows(gains, "+"))
    section.note(seeds.PAIRED)
  return section


def look(run, data_dir):
  """What a run's model sees, and what it mistakes."""
  section = page.Section(run["title"])
  backbone, dataset = backbones.read(str(run["workdir"]), data_dir=data_dir)
  labels = np.asarray(dataset.test_labels)
  _, first = np.unique(labels, return_index=True)
  some = np.asarray(dataset.test_images[first[:SHOWN]])
  if run["config"]["stage"] == "pretrain":
    config = ml_collections.ConfigDict(run["config"])
    section.picture(lambda: draw_views(config, some[0]), "views")
  maps = models.attention_maps(backbone.apply("attention")(some))
  section.note("Where the last block looks, on average and head by head.")
  section.picture(lambda: attention.draw(some, {"mean": maps}), "attention")
  chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[:MOST])
  if len(chosen) >= 10:
    images = np.asarray(dataset.test_images[chosen])
    features = backbone.features(images, BATCH)
    section.note("Features of test images, by class.")
    section.picture(
      lambda: embedding.draw(features, labels[chosen], images, dataset.classes),
      "features",
    )
  if run["config"]["stage"] == "finetune":
    add_mistakes(section, run, dataset, data_dir)
  return section


def draw_views(config, image):
  fig = figure.Figure(figsize=(12, 1.8), layout="constrained")
  pictures.draw_views(fig, config, image)
  return fig


def add_mistakes(section, run, dataset, data_dir):
  """The confusion matrix, and the mistakes that the classifier is surest of."""
  found = classifier.read(str(run["workdir"]), data_dir=data_dir)
  logits = accuracy.extract(
    found.predict, dataset.test_images, BATCH, found.sharding
  )
  labels = np.asarray(dataset.test_labels)
  values = figures.classification(logits, labels)
  section.note(
    f"{values['top1']:.2f} % of {len(labels):,} test images are right; the"
    f" expected calibration error is {values['calibration_error']:.1f} %."
  )
  section.picture(
    lambda: curves.confusion(values["confusion"], found.classes), "confusion"
  )
  guesses = logits.argmax(-1)
  confidence = scipy.special.softmax(logits.astype(float), -1).max(-1)
  wrong = np.flatnonzero(guesses != labels)
  worst = wrong[np.argsort(-confidence[wrong])][:MISTAKES]
  if len(worst):
    section.note("The mistakes that it is surest of.")
    section.picture(
      lambda: curves.mistakes(
        np.asarray(dataset.test_images[worst]),
        *(labels[worst], guesses[worst], confidence[worst]),
        found.classes,
      ),
      "mistakes",
    )


def repeat(runs):
  section = page.Section("How to repeat it")
  for run in runs:
    section.code(run["command"] or f"{run['title']}: its command is unknown")
    versions = run["result"].get("versions", {})
    section.note(", ".join(f"{k} {v}" for k, v in versions.items()))
    digest = run["result"].get("state_sha256", "")
    section.note(f"state_sha256 {digest}")
  return section


if __name__ == "__main__":
  main()
