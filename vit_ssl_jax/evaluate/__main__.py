"""Evaluates what was trained: a classifier's accuracy, a backbone's features.

  python -m vit_ssl_jax.evaluate --workdir=B
  python -m vit_ssl_jax.evaluate --workdir=B --suite=test,cifar10_c
  python -m vit_ssl_jax.evaluate --workdir=B/checkpoints/1200 --suite=val
  python -m vit_ssl_jax.evaluate --init_from=FILE --arch=vit --dataset=cifar10
  python -m vit_ssl_jax.evaluate --workdir=B --suite=cinic10,folder:/my/photos
  python -m vit_ssl_jax.evaluate --workdir=A --suite=knn,linear,features
  python -m vit_ssl_jax.evaluate --workdir=B --suite=attention --beside=SCRATCH

FILE is anything that was exported from a run, the PyTorch weights of the
paper's authors, or these by name, such as authors:vit,cifar10, which are
downloaded once; the published accuracy then stands beside. What was exported
here says itself what it is; else --arch and --dataset do, and the model has the
paper's sizes.

suites of a classifier:
  test                    the run's own test images, or those of --dataset
  val                     the run's own validation images
  cifar10_c, cifar100_c   CIFAR's test images under 15 corruptions, and 4 extra
                          ones, at 5 severities; --data_dir says where they
                          lie, or cifar10_c:/path/to/CIFAR-10-C does
  cifar100, svhn, ...     the test images of another set that TFDS keeps
  npz:/path/file.npz      the file's test images
  folder:/path            the folder's test images; where it has no train and
                          test, those that the run would have held out

suites of any checkpoint or weights, of either stage, on the run's own images:
  knn                     nearest neighbours on frozen features
  linear                  logistic regression on frozen features
  attention               attention.png: where the last block looks, on average
                          and head by head; --beside adds another model's
  features                features.png: PCA, t-SNE, nearest neighbours

Images are resized to the model's size as the run's own were. A suite's classes
have to be those of the checkpoint's head, in its order; where one of both knows
its classes by numbers alone, only how many there are can be compared.

The figures are printed, and those of a run put into WORKDIR/evaluation.json,
which keeps those of other suites. Of each suite it holds the checkpoint's step,
the number of images and, in percent, top1, top5, the expected calibration error
and the accuracy of each class, and the confusion matrix. Of knn and linear it
holds the same of raw pixels and of the untrained network. Of a corrupted set it
holds each corruption's top-1 at severities 1 to 5, each on so many images; top1
is their mean over the 15 corruptions, and mean_error is 100 less that.
"""

import functools
import json
import os
import pathlib

import numpy as np

from vit_ssl_jax.cli import Parser, configure, reporting_errors, table
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError, did_you_mean
from vit_ssl_jax.evaluate import corruptions, features, suites
from vit_ssl_jax.evaluate.classifier import (
  add_classifier,
  check_source,
  read_classifier,
)
from vit_ssl_jax.interop import authors


def main(argv=None):
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  args = parse(argv)
  with reporting_errors():
    configure()
    run_suites(args)


def parse(argv):
  parser = Parser(
    prog="python -m vit_ssl_jax.evaluate",
    usage="%(prog)s --workdir=B | --init_from=FILE [options]",
    description=__doc__,
  )
  add_classifier(parser, batch_size=512)
  parser.add_argument(
    "--suite",
    default="test",
    metavar="SUITE[,SUITE...]",
    help="what to evaluate on; test if left out. Sets that TFDS keeps:"
    f" {', '.join(registry.SETS)}",
  )
  parser.add_argument(
    "--beside",
    default="",
    metavar="PATH",
    help="another workdir or FILE, whose attention is drawn beside",
  )
  parser.add_argument(
    "--image_size",
    type=int,
    default=0,
    metavar="S",
    help="of attention: another size than the model was trained at",
  )
  parser.add_argument(
    "--out",
    default="",
    metavar="FOLDER",
    help="where pictures go; the workdir if left out",
  )
  parser.add_argument(
    "--json",
    action="store_true",
    help="print the content of evaluation.json in one line, and no table",
  )
  return parser.parse_args(argv)


def run_suites(args):
  """Checks everything, then evaluates suite by suite, saving as it goes."""
  names = suite_names(args.suite)
  check_options(args, names)
  frozen = set(names) <= set(features.KINDS)
  if frozen:
    check_source(args)
    source, dataset = features.read(args, args.workdir or args.init_from)
  else:
    source = read_classifier(args)
  workdir = source.workdir
  if workdir and not os.access(workdir, os.W_OK):
    raise UserError(f"{workdir} is read-only: evaluation.json goes there")
  before = suites.read_results(workdir) if workdir else {}
  if frozen:
    evaluate = functools.partial(
      features.evaluate,
      backbone=source,
      dataset=dataset,
      args=args,
      out=pathlib.Path(args.out or workdir or "."),
    )
  else:
    evaluate = opened(names, source, args)
  step = {} if source.step is None else {"step": source.step}
  results = {}
  try:
    for key in names:
      results[key] = step | evaluate(key)
      if workdir:
        suites.write_results(workdir, results)
  finally:  # what was found is shown, whatever became of the rest
    if results:
      print(json.dumps(before | results) if args.json else shown(results))


def check_options(args, names):
  """Raises a UserError where options do not go with the suites."""
  if args.beside and "attention" not in names:
    raise UserError("--beside goes with --suite=attention")
  if args.image_size and set(names) != {"attention"}:
    raise UserError("--image_size goes with --suite=attention alone")
  both = sorted(set(names) & set(features.KINDS))
  if both and len(both) < len(names):
    raise UserError(
      f"--suite={args.suite}: {', '.join(both)} look at features, the others at"
      " a classifier: give them apart"
    )


def opened(names, classifier, args):
  """Opens a classifier's suites; (name) -> its figures."""
  # Corrupted sets are checked at once; decoding the others can take minutes.
  fast = sorted(names, key=lambda key: key not in corruptions.SETS)
  found = {key: suites.open_suite(names[key], classifier) for key in fast}

  def evaluate(key):
    figures = suites.evaluate(key, found[key], classifier, args.batch_size)
    if key == "test" and args.init_from.startswith(authors.PREFIX):
      figures["published"] = authors.published(args.init_from)
    return figures

  return evaluate


def suite_names(given):
  """Splits --suite.

  Returns:
    A dict of each suite as it is given, under its name in evaluation.json.

  Raises:
    UserError: a suite is unknown, or named twice.
  """
  known, names = [*suites.OWN, *features.KINDS], {}
  known += [*corruptions.SETS, *registry.SETS]
  for name in map(str.strip, given.split(",")):
    kind = name.partition(":")[0]
    corrupted = kind in corruptions.SETS
    own = name.startswith((registry.NPZ, registry.FOLDER))
    if not (corrupted or own or name in known):
      hint = did_you_mean(kind.lower(), known)
      raise UserError(
        f"--suite={name!r} is unknown{hint or ':'} possible are"
        f" {', '.join(known)}, npz:/path/file.npz and folder:/path"
      )
    key = kind if corrupted else name  # the same wherever it lies
    if key in names:
      raise UserError(f"--suite={given} names {key} twice")
    names[key] = name
  return names


def shown(results):
  """The results as tables, in percent."""
  plain, frozen, parts = [], [], []
  for key, figures in results.items():
    if "picture" in figures:
      parts.append(f"{key}: {figures['picture']}")
      continue
    if "raw_pixels" in figures:
      columns = ("images", "top1", "raw_pixels", "untrained")
      frozen.append((key, *(figures[x] for x in columns)))
      continue
    images = f"{figures['images']:,}"
    if "corruptions" not in figures:
      columns = ("top1", "top5", "calibration_error", "published")
      plain.append((key, images, *map(figures.get, columns)))
      continue
    header = (key, "images", "mean", *map(str, corruptions.SEVERITIES))
    rows = [
      (name, images, float(np.mean(found)), *found)
      for name, found in figures["corruptions"].items()
    ]
    error = f"mean error over the 15: {figures['mean_error']:.2f}"
    parts.append(f"{table(header, rows)}\n{error}")
  if plain:
    header = ("suite", "images", "top-1", "top-5", "calibration error")
    header += ("published",)
    if not any(row[-1] for row in plain):
      header, plain = header[:-1], [row[:-1] for row in plain]
    parts.insert(0, table(header, plain))
  if frozen:
    header = ("suite", "images", "top-1", "raw pixels", "untrained")
    parts.insert(0, table(header, frozen))
  return "\n\n".join(parts)


if __name__ == "__main__":
  main()
