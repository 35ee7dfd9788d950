"""Test sets of a classifier: its own, corrupted ones, any other set."""

from vit_ssl_jax import cli, files
from vit_ssl_jax.data import load, registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import corruptions, metrics
from vit_ssl_jax.run import workdir as workdirs

OWN = ("test", "val")  # of the set that the classifier was trained on
# Keys of `Network.data` that apply to any set.
SHARED = ("image_size", "data_dir", "resize", "seed", "mean", "std")
SHARED += ("test_fraction", "skip_broken_images")


def open_suite(name, classifier):
  """Loads a suite and checks that it fits a classifier, a `model.Network`.

  Returns:
    A `corruptions.Place`, or images (N, S, S, 3) uint8 and labels (N,).

  Raises:
    UserError: it is missing, damaged, or of other classes.
  """
  kind = name.partition(":")[0]
  if kind in corruptions.SETS:
    # Before the files: nobody should download a set that does not fit.
    count = corruptions.SETS[kind].num_classes
    check_count(name, count, classifier, exact=True)
    return corruptions.find(name, classifier.data["data_dir"])
  dataset = load_suite(name, classifier)
  check_classes(name, dataset.classes, classifier)
  if dataset.broken:
    cli.log(f"{name}: skipped {len(dataset.broken)} broken images")
  if name != "val":
    return dataset.test_images, dataset.test_labels
  if not len(dataset.val_labels):
    raise UserError(
      f"--suite=val: {classifier.path} has no validation images; set"
      " val_fraction or val_split when training"
    )
  return dataset.val_images, dataset.val_labels


def load_suite(name, classifier):
  """Loads a suite's `load.Dataset`; test and val exactly as the run did."""
  if name in OWN:
    dataset, workdir = classifier.load_data(), classifier.workdir
    if workdir:
      trained_on = files.read_json(workdir / "dataset.json")
      workdirs.check_same(trained_on, workdirs.describe(dataset), workdir)
    return dataset
  arguments = {k: x for k, x in classifier.data.items() if k in SHARED}
  if name in registry.SETS:  # spares decoding its training images
    arguments["train_split"] = registry.SETS[name].test_split
  return load.load(**arguments | {"name": name})


def check_classes(name, classes, classifier):
  """Raises a UserError where labels and logits stand for different classes.

  Where only one side has names, only the counts are compared, and the suite may
  lack the last classes.
  """
  own = classifier.classes
  numbers, own_numbers = (all(map(str.isdecimal, x)) for x in (classes, own))
  check_count(name, len(classes), classifier, exact=not numbers)
  for i, (there, here) in enumerate(zip(classes, own, strict=False)):
    if there != here and numbers == own_numbers:
      raise UserError(
        f"--suite={name} has other classes than {classifier.path}, or another"
        f" order: class {i} is {there!r} there and {here!r} in the run"
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
  """Computes the scores of a suite of `open_suite`."""
  if isinstance(suite, corruptions.Place):
    return corruptions.evaluate(suite, classifier, batch_size)
  images, labels = suite
  cli.log(f"{name}: {len(labels):,} images")
  return metrics.classification(classifier.logits(images, batch_size), labels)
