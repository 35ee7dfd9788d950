"""What a fine-tuned classifier is evaluated on after its run."""

import itertools
import json

from vit_ssl_jax import cli, evaluate, files
from vit_ssl_jax.cli import UserError
from vit_ssl_jax.data import inputs, registry
from vit_ssl_jax.data.load import load as load_set
from vit_ssl_jax.evaluate import corruptions
from vit_ssl_jax.parallel import mesh as sharding
from vit_ssl_jax.run import workdir as workdirs

OWN = ("test", "val")  # of the run's own set
# How another set's images are read as the run's own are.
SHARED = ("resize", "test_fraction", "skip_broken_images")
SHARED += ("mean", "std")
LISTED = 3  # differences in one message


def open_suite(name, run, data_dir):
  """Finds or loads a suite, and checks that it fits a `classifiers.Classifier`.

  Returns:
    A `corruptions.Place`, or images (N, S, S, 3) uint8 and labels (N,).

  Raises:
    UserError: it is missing, damaged, or of other classes.
  """
  kind = name.partition(":")[0]
  if kind in corruptions.SETS:
    # Before it is looked for: nobody is to fetch what will not fit.
    check_count(name, corruptions.SETS[kind][1], run, exact=True)
    return corruptions.find(name, data_dir)
  if name in OWN and not run.config.dataset:
    raise UserError(
      f"--suite={name}: {run.path} does not say what it was trained on: give"
      " --dataset, or another --suite"
    )
  dataset = load(name, run.config, data_dir)
  check_classes(name, dataset.classes, run)
  about = run.workdir and run.workdir / "dataset.json"
  if name in OWN and about and about.exists():  # older runs have none
    trained_on = files.read_json(about)
    workdirs.check_same(trained_on, workdirs.describe(dataset), run.workdir)
  if dataset.broken:
    cli.say(f"{name}: skipped {len(dataset.broken)} broken images")
  if name != "val":
    return dataset.test_images, dataset.test_labels
  if not len(dataset.val_labels):
    raise UserError(
      f"--suite=val: {run.path} has no validation images; val_fraction or"
      " val_split set some apart when it is trained"
    )
  return dataset.val_images, dataset.val_labels


def load(name, config, data_dir):
  """Loads a suite's `load.Dataset`; test and val as the run did."""
  own = name in OWN
  given = {key: config[key] for key in (inputs.KEYS if own else SHARED)}
  if name in registry.SETS:  # its training images need not be decoded
    given["train_split"] = registry.SETS[name].test_split
  return load_set(
    config.dataset if own else name,
    config.model.image_size,
    seed=config.split_seed,
    **given | {"data_dir": data_dir},
  )


def check_classes(name, classes, run):
  """Raises a UserError where labels would not mean what the logits do.

  Numbers name nothing: against names, only how many there are is compared.
  """
  numbers, ours = (all(map(str.isdecimal, x)) for x in (classes, run.classes))
  check_count(name, len(classes), run, exact=ours and not numbers)
  if numbers != ours:
    return
  # Of numbers the last ones may lack.
  pairs = itertools.zip_longest(
    classes, run.classes[: len(classes)] if numbers else run.classes
  )
  different = [
    f"{i} is {there or 'none'} there and {here} in the run"
    for i, (there, here) in enumerate(pairs)
    if there != here
  ]
  if different:
    more = f", and {len(different) - LISTED} more"
    raise UserError(
      f"--suite={name} has other classes than {run.path}, or another order:"
      f" class {', '.join(different[:LISTED])}"
      f"{more if len(different) > LISTED else ''}"
    )


def check_count(name, count, run, exact):
  """Raises a UserError where a suite's classes are too many, or too few."""
  if count > run.num_classes or (exact and count < run.num_classes):
    raise UserError(
      f"--suite={name} has {count} classes, but the head of {run.path} has"
      f" {run.num_classes}"
    )


def make_top1(run, batch_size):
  """Makes (images (N, S, S, 3) uint8, labels (N,)) -> top-1 in percent."""
  placed = sharding.batch_sharding(run.mesh)

  def top1(images, labels):
    return evaluate.top1(run.predict, images, labels, batch_size, placed)

  return top1


def evaluate_suite(key, suite, top1, image_size):
  """A suite's figures, as they stand in evaluation.json."""
  if isinstance(suite, corruptions.Place):
    return evaluate_corruptions(suite, top1, image_size)
  images, labels = suite
  cli.say(f"{key}: {len(labels):,} images")
  return {"images": len(labels), "top1": top1(images, labels)}


def evaluate_corruptions(place, top1, image_size):
  """The same of a corrupted set, with the time left on standard error."""
  found, each = {}, corruptions.IMAGES
  parts = len(place.corruptions) * len(corruptions.SEVERITIES)
  with cli.progress_bar(parts * each, "image") as bar:
    bar.set_description(place.name)
    for name, severity, images, labels in corruptions.read(place, image_size):
      found[name, severity] = top1(images, labels)
      bar.update(len(labels))
  error = corruptions.mean_error(found)
  return {
    "images": each,
    "top1": 100 - error,
    "mean_error": error,
    "corruptions": {
      name: [found[name, severity] for severity in corruptions.SEVERITIES]
      for name in place.corruptions
    },
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
  whole = read_results(workdir) | results
  try:
    files.write(path, json.dumps(whole, indent=2) + "\n")
  except OSError as e:
    raise UserError(f"{path} cannot be written: {e.strerror}") from e
