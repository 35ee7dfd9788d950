"""Evaluates a classifier's accuracy, or the features of any checkpoint.

  python -m vit_ssl_jax.evaluate --workdir=B
  python -m vit_ssl_jax.evaluate --workdir=B --suite=test,cifar10_c
  python -m vit_ssl_jax.evaluate --workdir=B/checkpoints/1200 --suite=val
  python -m vit_ssl_jax.evaluate --init_from=FILE --arch=vit --dataset=cifar10
  python -m vit_ssl_jax.evaluate --workdir=B --suite=cinic10,folder:/my/photos
  python -m vit_ssl_jax.evaluate --workdir=A --suite=knn,linear,features
  python -m vit_ssl_jax.evaluate --workdir=B --suite=attention --beside=SCRATCH

FILE is an export of weights, or PyTorch weights of the paper's authors: a file,
or a name such as authors:vit,cifar10, which is downloaded once; the published
accuracy is printed beside. An export describes itself; other files need --arch
and --dataset, and have the paper's sizes.

suites of a classifier:
  test                    the run's own test images, or those of --dataset
  val                     the run's own validation images
  cifar10_c, cifar100_c   CIFAR's test images under 15 corruptions, and 4 extra
                          ones, at 5 severities, in --data_dir or in the folder
                          that cifar10_c:/path/to/CIFAR-10-C names
  cifar100, svhn, ...     the test images of another set that TFDS keeps
  npz:/path/file.npz      the file's test images
  folder:/path            the folder's test images; without train and test
                          folders, those that the run would have held out

suites of any checkpoint or weights, of either stage, on the run's own images:
  knn                     weighted k-NN on frozen features
  linear                  logistic regression on frozen features
  attention               attention.png: attention maps of the last block, mean
                          and heads; --beside adds another model's
  features                features.png: PCA, t-SNE, nearest neighbours

Images are resized as the run's own were. A suite must have the classes of the
checkpoint's head, in its order; where only one of both names its classes, only
their number is compared.

Results are printed, and those of a run are added to WORKDIR/evaluation.json. Of
each suite it holds the checkpoint's step, the number of images and, in percent,
top1, top5, the expected calibration error, the accuracy of each class, and the
confusion matrix; of knn and linear top1, and the same of raw_pixels and of the
untrained network; of a corrupted set the top-1 of each corruption at severities
1 to 5, top1, their mean over the 15, and mean_error, 100 less that.
"""

import json
import os
import pathlib

import numpy as np

from vit_ssl_jax import cli, files
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError, did_you_mean
from vit_ssl_jax.evaluate import corruptions, model, pictures, probes, suites
from vit_ssl_jax.interop import authors

FROZEN = (*probes.KINDS, *pictures.KINDS)


def main(argv=None):
  """Runs the command line."""
  args = parse(argv)
  with cli.reporting_errors():
    cli.configure()
    run_suites(args)


def parse(argv):
  parser = cli.Parser(
    prog="python -m vit_ssl_jax.evaluate",
    usage="%(prog)s --workdir=B | --init_from=FILE [options]",
    description=__doc__,
  )
  model.add_arguments(parser, batch_size=512)
  option = parser.add_argument
  text = f"default: %(default)s. TFDS keeps {', '.join(registry.SETS)}"
  option("--suite", default="test", metavar="SUITE[,SUITE...]", help=text)
  option("--beside", default="", metavar="PATH", help="another workdir or FILE")
  text = "for attention: another size than in training"
  option("--image_size", type=int, default=0, metavar="S", help=text)
  text = "for pictures; default: the workdir"
  option("--out", default="", metavar="FOLDER", help=text)
  option("--json", action="store_true", help="print evaluation.json, no table")
  return parser.parse_args(argv)


def run_suites(args):
  """Checks everything, then evaluates suite by suite, saving as it goes."""
  names = suite_names(args.suite)
  check_options(args, names)
  network = model.from_arguments(args, args.image_size)
  workdir = network.workdir
  if workdir and not os.access(workdir, os.W_OK):
    raise UserError(f"{workdir} is read-only: evaluation.json goes there")
  before = read_results(workdir) if workdir else {}
  evaluate = evaluate_frozen if set(names) <= {*FROZEN} else evaluate_classifier
  step = {} if network.step is None else {"step": network.step}
  results = {}
  try:
    for key, scores in evaluate(names, network, args):
      results[key] = step | scores
      if workdir:
        write_results(workdir, results)
  finally:  # also after an interruption
    if results:
      print(json.dumps(before | results) if args.json else tables(results))


def check_options(args, names):
  """Raises a UserError where options do not go with the suites."""
  if args.beside and "attention" not in names:
    raise UserError("--beside goes with --suite=attention")
  if args.image_size and set(names) != {"attention"}:
    raise UserError("--image_size goes with --suite=attention alone")
  if args.image_size < 0:
    raise UserError(f"--image_size={args.image_size} must be at least 1")
  frozen = sorted(set(names) & set(FROZEN))
  if frozen and len(frozen) < len(names):
    raise UserError(
      f"--suite={args.suite}: {', '.join(frozen)} evaluate features, the others"
      " a classifier: run them separately"
    )


def suite_names(suites_given):
  """Splits --suite into {key in evaluation.json: suite as given}.

  Raises:
    UserError: a suite is unknown, or named twice.
  """
  known = [*suites.OWN, *FROZEN, *corruptions.SETS, *registry.SETS]
  names = {}
  for name in map(str.strip, suites_given.split(",")):
    kind = name.partition(":")[0]
    corrupted = kind in corruptions.SETS
    custom = name.startswith((registry.NPZ, registry.FOLDER))
    if not (corrupted or custom or name in known):
      possible = f": must be one of {', '.join(known)}, npz:FILE or folder:PATH"
      hint = did_you_mean(kind.lower(), known) or possible
      raise UserError(f"unknown --suite={name!r}{hint}")
    key = kind if corrupted else name  # the same wherever it lies
    if key in names:
      raise UserError(f"--suite={suites_given} names {key} twice")
    names[key] = name
  return names


def evaluate_classifier(names, classifier, args):
  """Opens all suites of a classifier, then yields (key, scores) of each."""
  model.check_classifier(classifier)
  # Corrupted sets are checked at once; decoding the others can take minutes.
  order = sorted(names, key=lambda key: key not in corruptions.SETS)
  opened = {key: suites.open_suite(names[key], classifier) for key in order}
  for key in names:
    scores = suites.evaluate(key, opened[key], classifier, args.batch_size)
    if key == "test" and args.init_from.startswith(authors.PREFIX):
      scores["published"] = authors.published(args.init_from)
    yield key, scores


def evaluate_frozen(names, network, args):
  """Yields (key, scores or path of a picture) of suites of frozen features."""
  dataset, networks = network.load_data(), {"mean": network}
  if args.beside:
    named = args.arch, args.dataset, args.data_dir, args.image_size
    beside = model.read(args.beside, *named)
    networks = {x.path: x for x in (beside, network)}
  folder = pathlib.Path(args.out or network.workdir or ".")
  for kind in names:
    if kind in probes.KINDS:
      yield kind, probes.probe(kind, network, dataset, args.batch_size)
      continue
    if kind == "attention":
      fig = pictures.attention(networks, dataset)
    else:
      fig = pictures.features(network, dataset, args.batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.png"
    with files.atomic_write(path) as temporary:
      fig.savefig(temporary, dpi=110, format="png")
    cli.log(f"{kind}: {path}")
    yield kind, {"picture": str(path)}


def read_results(workdir):
  """Reads evaluation.json; {} where there is none."""
  path = workdir / "evaluation.json"
  return files.read_json(path) if path.exists() else {}


def write_results(workdir, results):
  """Adds results to evaluation.json."""
  text = json.dumps(read_results(workdir) | results, indent=2) + "\n"
  files.write(workdir / "evaluation.json", text)


# A key that only such scores have -> columns of their table.
TABLES = {
  "confusion": ("images", "top1", "top5", "calibration_error", "published"),
  "raw_pixels": ("images", "top1", "raw_pixels", "untrained"),
}
TITLES = {"top1": "top-1", "top5": "top-5"}


def tables(results):
  """Formats results as tables, in percent."""
  parts = []
  for marker, columns in TABLES.items():
    rows = {key: x for key, x in results.items() if marker in x}
    columns = [x for x in columns if any(x in row for row in rows.values())]
    cells = [(key, *map(row.get, columns)) for key, row in rows.items()]
    if cells:
      titles = [TITLES.get(x, x.replace("_", " ")) for x in columns]
      parts.append(cli.table(("suite", *titles), cells))
  for key, scores in results.items():
    if "picture" in scores:
      parts.append(f"{key}: {scores['picture']}")
    if "corruptions" in scores:
      header = (key, "images", "mean", *map(str, corruptions.SEVERITIES))
      rows = [
        (name, scores["images"], float(np.mean(top1)), *top1)
        for name, top1 in scores["corruptions"].items()
      ]
      error = f"mean error over the 15: {scores['mean_error']:.2f}"
      parts.append(f"{cli.table(header, rows)}\n{error}")
  return "\n\n".join(parts)
