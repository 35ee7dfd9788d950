"""What a fine-tuned classifier is evaluated on after its run."""

import json

import numpy as np

from vit_ssl_jax import cli, files
from vit_ssl_jax.data import registry
from vit_ssl_jax.data.load import load as load_set
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import accuracy, corruptions, figures
from vit_ssl_jax.run import workdir as workdirs

OWN = ("test", "val")  # of the classifier's own set
# What another set shares with the classifier's own, of `Classifier.data`.
SHARED = ("image_size", "data_dir", "resize", "seed", "mean", "std")
SHARED += ("test_fraction", "skip_broken_images")


def open_suite(name, classifier):
  """Finds or loads a suite, and checks that it fits a `Classifier`.

  Returns:
    A `corruptions.Place`, or images (N, S, S, 3) uint8 and labels (N,).

  Raises:
    UserError: it is missing, damaged, or of other classes.
  """
  kind = name.partition(":")[0]
  if kind in corruptions.SETS:
    # Before it is looked for: nobody is to fetch what will not fit.
    check_count(
      name, corruptions.SETS[kind].num_classes, classifier, exact=True
    )
    return corruptions.find(name, classifier.data["data_dir"])
  if name in OWN and not classifier.data["name"]:
    raise UserError(
      f"--suite={name}: {classifier.path} does not say what it was trained on:"
      " give --dataset, or another --suite"
    )
  dataset = load(name, classifier)
  check_classes(name, dataset.classes, classifier)
  if name in OWN:
    check_unchanged(classifier.workdir, dataset)
  if dataset.broken:
    cli.log(f"{name}: skipped {len(dataset.broken)} broken images")
  if name != "val":
    return dataset.test_images, dataset.test_labels
  if not len(dataset.val_labels):
    raise UserError(
      f"--suite=val: {classifier.path} has no validation images; val_fraction"
      " or val_split set some apart when it is trained"
    )
  return dataset.val_images, dataset.val_labels


def load(name, classifier):
  """Loads a suite's `load.Dataset`; test and val as the run did."""
  if name in OWN:
    return load_set(**classifier.data)
  arguments = {k: x for k, x in classifier.data.items() if k in SHARED}
  if name in registry.SETS:  # its training images need not be decoded
    arguments["train_split"] = registry.SETS[name].test_split
  return load_set(**arguments | {"name": name})


def check_unchanged(workdir, dataset):
  """Raises a UserError where a run's set is not what it was trained on."""
  path = workdir and workdir / "dataset.json"
  if path and path.exists():  # older runs have none
    described = workdirs.describe(dataset)
    workdirs.check_same(files.read_json(path), described, workdir)


def check_classes(name, classes, classifier):
  """Raises a UserError where labels would not mean what the logits do.

  Numbers name nothing: against names, only how many there are is compared, and
  the last ones may lack.
  """
  ours = classifier.classes
  numbers, our_numbers = (all(map(str.isdecimal, x)) for x in (classes, ours))
  check_count(name, len(classes), classifier, exact=not numbers)
  for i, (theirs, here) in enumerate(zip(classes, ours, strict=False)):
    if theirs != here and numbers == our_numbers:
      raise UserError(
        f"--suite={name} has other classes than {classifier.path}, or another"
        f" order: class {i} is {theirs} there and {here} in the run"
      )


def check_count(name, count, classifier, exact):
  """Raises a UserError where a suite has too many classes, or too few."""
  outputs = len(classifier.classes)
  if count > outputs or (exact and count < outputs):
    raise UserError(
      f"--suite={name} has {count} classes, but the head of {classifier.path}"
      f" has {outputs}"
    )


def evaluate(name, suite, classifier, batch_size):
  """The figures of a suite of `open_suite`, as evaluation.json has them."""

  def logits(images):
    return accuracy.extract(
      classifier.predict, images, batch_size, classifier.sharding
    )

  def top1(images, labels):
    return accuracy.percent_correct(logits(images), labels)

  if isinstance(suite, corruptions.Place):
    return evaluate_corruptions(suite, top1, classifier.data["image_size"])
  images, labels = suite
  cli.log(f"{name}: {len(labels):,} images")
  return figures.classification(logits(images), labels)


def evaluate_corruptions(place, top1, image_size):
  """The same of a corrupted set, with a progress bar."""
  found = {name: [] for name in place.corruptions}
  total = len(found) * len(corruptions.SEVERITIES) * place.images
  with cli.progress_bar(total, "image", label=place.name) as bar:
    for name, _, images, labels in corruptions.read(place, image_size):
      found[name].append(top1(images, labels))
      bar.update(len(labels))
  # Not divided by AlexNet's errors, as ImageNet-C's is (Hendrycks et al., 2020,
  # https://arxiv.org/abs/1912.02781).
  mean = float(np.mean([found[name] for name in corruptions.CORRUPTIONS]))
  return {
    "images": place.images,
    "top1": mean,
    "mean_error": 100 - mean,
    "corruptions": found,
  }


def read_results(workdir):
  """What evaluation.json holds; {} where there is none yet."""
  path = workdir / "evaluation.json"
  try:
    return json.loads(path.read_text()) if path.exists() else {}
  except ValueError as e:
    raise UserError(f"{path} is damaged ({e}): remove it") from e


def write_results(workdir, results):
  """Puts results into evaluation.json, beside those of other suites."""
  path = workdir / "evaluation.json"
  results = read_results(workdir) | results
  try:
    files.write(path, json.dumps(results, indent=2) + "\n")
  except OSError as e:
    raise UserError(f"{path} cannot be written: {e.strerror}") from e
