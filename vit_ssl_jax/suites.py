"""What a fine-tuned classifier is evaluated on after its run."""

import dataclasses
import functools
import itertools
import json
import pathlib

import jax
import ml_collections

from vit_ssl_jax import (
  checkpoints,
  console,
  data,
  files,
  finetune,
  inputs,
  models,
  sharding,
  workdirs,
)
from vit_ssl_jax.data import corruptions, facts
from vit_ssl_jax.errors import UserError

OWN = ("test", "val")  # of the run's own set
# How another set's images are read as the run's own are.
SHARED = ("resize", "test_fraction", "skip_broken_images")
SHARED += ("mean", "std")
LISTED = 3  # differences in one message


@dataclasses.dataclass(frozen=True)
class Run:
  """A checkpoint of a fine-tuning run.

  Attributes:
    workdir: the run's folder.
    config: its ConfigDict.
    step: the checkpoint's.
    params: the classifier's parameters.
    num_classes: C, of its head.
    trained_on: the content of dataset.json; {} where an older run has none.
  """

  workdir: pathlib.Path
  config: ml_collections.ConfigDict
  step: int
  params: dict
  num_classes: int
  trained_on: dict

  @property
  def classes(self):
    """The classes in the order of the logits; numbers where none are known."""
    numbers = [str(i) for i in range(self.num_classes)]
    return tuple(self.trained_on.get("classes", numbers))


def read_run(path):
  """Reads the run that --workdir names.

  Args:
    path: as of `checkpoints.read`.

  Raises:
    UserError: it is no checkpoint of fine-tuning, or does not fit the model.
  """
  state, config = checkpoints.read(path)
  if "teacher" in state:
    raise UserError(
      f"--workdir={path} is a pretraining's, which knows no classes: give that"
      " of a fine-tuning (configs/finetune.py)"
    )
  params, config = state["params"], ml_collections.ConfigDict(config)
  num_classes = params["head"]["kernel"].shape[-1]
  model = models.from_config(config, num_classes)
  expected = jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
  models.check_parameters(expected, params, f"--workdir={path}")
  workdir = pathlib.Path(path)
  if not (workdir / checkpoints.FOLDER).is_dir():
    workdir = workdir.absolute().parents[1]
  about = workdir / "dataset.json"
  trained_on = json.loads(about.read_text()) if about.exists() else {}
  step = int(state["step"])
  return Run(workdir, config, step, params, num_classes, trained_on)


def open_suite(name, run, data_dir):
  """Finds or loads a suite, and checks that it fits the run.

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
  dataset = load(name, run.config, data_dir)
  check_classes(name, dataset.classes, run)
  if name in OWN:
    workdirs.check_same(run.trained_on, workdirs.describe(dataset), run.workdir)
  if dataset.broken:
    console.say(f"{name}: skipped {len(dataset.broken)} broken images")
  if name != "val":
    return dataset.test_images, dataset.test_labels
  if not len(dataset.val_labels):
    raise UserError(
      f"--suite=val: {run.workdir} has no validation images; val_fraction or"
      " val_split set some apart when it is trained"
    )
  return dataset.val_images, dataset.val_labels


def load(name, config, data_dir):
  """Loads a suite's `data.Dataset`; test and val as the run did."""
  # Older runs lack some keys; they gave the aspect up.
  known = {"resize": "squash"} | dict(config)
  own = name in OWN
  wanted = inputs.KEYS if own else SHARED
  given = {key: known[key] for key in wanted if key in known}
  if name in facts.SETS:  # its training images need not be decoded
    given["train_split"] = facts.SETS[name].test_split
  return data.load(
    config.dataset if own else name,
    config.model.image_size,
    seed=known.get("split_seed", config.seed),
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
      f"--suite={name} has other classes than {run.workdir}, or another order:"
      f" class {', '.join(different[:LISTED])}"
      f"{more if len(different) > LISTED else ''}"
    )


def check_count(name, count, run, exact):
  """Raises a UserError where a suite's classes are too many, or too few."""
  if count > run.num_classes or (exact and count < run.num_classes):
    raise UserError(
      f"--suite={name} has {count} classes, but the head of {run.workdir} has"
      f" {run.num_classes}"
    )


def make_top1(run, batch_size):
  """Makes (images (N, S, S, 3) uint8, labels (N,)) -> top-1 in percent.

  It is compiled once, for every suite.
  """
  mesh = sharding.make_mesh(1, jax.device_count())
  model = models.from_config(run.config, run.num_classes)
  params = jax.device_put(run.params, sharding.state_sharding(mesh, run.params))
  run.config.evaluate_batch_size = batch_size
  return functools.partial(finetune.make_top1(run.config, model, mesh), params)


def evaluate_suite(key, suite, top1, image_size):
  """A suite's figures, as they stand in evaluation.json."""
  if isinstance(suite, corruptions.Place):
    return evaluate_corruptions(suite, top1, image_size)
  images, labels = suite
  console.say(f"{key}: {len(labels):,} images")
  return {"images": len(labels), "top1": top1(images, labels)}


def evaluate_corruptions(place, top1, image_size):
  """The same of a corrupted set, with the time left on standard error."""
  found, each = {}, corruptions.IMAGES
  parts = len(place.corruptions) * len(corruptions.SEVERITIES)
  with console.progress_bar(0, parts, each) as bar:
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
