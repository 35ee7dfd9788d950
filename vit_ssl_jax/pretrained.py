"""Weights to begin from: of a run, of an Orbax checkpoint, or of any file."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
from flax import traverse_util

from vit_ssl_jax import checkpoints, interop, models, workdirs
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import recognise, transformers, weights

# What is known of a model and its training, in an exported file's metadata
# too: each name's value as text, in JSON where it is not text itself.
ABOUT = (
  "architecture",  # vit, swin or cait
  "model",  # its sizes
  "part",  # classifier, or teacher's backbone
  "classes",  # their names, in the order of the logits
  "mean",  # of the channels, in [0, 1]
  "std",
  "dataset",  # its name
  "images",  # how many of each part
  "step",
  "config",  # the run's
  "result",  # the content of its result.json
  "command",  # what trained it
  "layout",  # whose names the arrays have, in an exported file
)
TEXTS = ("architecture", "part", "dataset", "command", "layout")
PRODUCER = {"producer": "vit-ssl-jax"}
SAFETENSORS = "model.safetensors"  # of a folder of transformers'


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Weights, and what is known of them.

  Attributes:
    path: where they are from, as it was given.
    arrays: our own parameters, nested dicts, or name -> array of other names.
    about: what is known of ABOUT.
    left_out: names of what is there beside them.
    workdir: the run's folder, if it is a run.
  """

  path: str
  arrays: dict
  about: dict
  left_out: tuple[str, ...] = ()
  workdir: pathlib.Path | None = None

  @property
  def num_classes(self):
    """How many classes their head has; 0 without one."""
    if "head" in self.arrays:
      return self.arrays["head"]["kernel"].shape[-1]
    heads = [x for x in recognise.HEADS if x in self.arrays]
    return len(self.arrays[heads[0]]) if heads else 0


def read(path):
  """Reads weights, and what is known of them.

  Args:
    path: a workdir, one of its checkpoints, a checkpoint of Orbax, a folder of
      transformers', or a file that `interop.weights.read` reads.

  Raises:
    UserError: it is none of them, damaged, or a pickle that would execute
      something.
  """
  folder = pathlib.Path(path)
  if not folder.exists():
    raise UserError(f"there is no file or folder {path}")
  if not folder.is_dir():
    return of_file(path, weights.read(path))
  if (folder / SAFETENSORS).is_file():
    return of_transformers(path)
  if checkpoints.workdir_of(folder) or not checkpoints.is_tree(folder):
    return of_run(path)
  tree, metadata = checkpoints.read_tree(folder)
  params, part = backbone_of(tree)
  return Pretrained(str(path), params, {"part": part} | from_text(metadata))


def of_run(path):
  """The teacher's backbone of a pretraining, or a classifier."""
  state, config = checkpoints.read(path)
  params, part = backbone_of(state)
  workdir = checkpoints.workdir_of(path)
  about = workdir / "dataset.json"
  dataset = json.loads(about.read_text()) if about.is_file() else {}
  num_classes = len(params["head"]["bias"]) if "head" in params else 0
  return Pretrained(
    str(path),
    params,
    {
      "architecture": config["model"]["name"],
      "model": config["model"] | {"num_classes": num_classes},
      "part": part,
      "classes": dataset.get("classes", []),
      "mean": config["mean"],
      "std": config["std"],
      "dataset": config["dataset"],
      "images": dataset.get("images", {}),
      "step": int(state["step"]),
      "config": config,
      "result": workdirs.finished(workdir, int(state["step"])) or {},
    },
    workdir=workdir,
  )


def backbone_of(tree):
  """The parameters in a checkpoint's tree, and what they are."""
  if "teacher" in tree:
    return tree["teacher"]["backbone"], "teacher's backbone"
  params = tree.get("params", tree)
  return params, "classifier" if "head" in params else "backbone"


def of_file(path, found):
  """The Pretrained of `weights.Weights`."""
  arrays, about = found.arrays, from_text(found.metadata)
  if any("/" in name for name in arrays):  # our own names
    arrays = traverse_util.unflatten_dict(arrays, sep="/")
    arrays, _ = backbone_of(arrays)
  return Pretrained(str(path), arrays, about, found.left_out)


def of_transformers(path):
  """The Pretrained of a folder as transformers writes it.

  It may have been trained there since we wrote it: its config counts.
  """
  folder = pathlib.Path(path)
  given = of_file(path, weights.read(folder / SAFETENSORS))
  about = dict(given.about)
  try:
    config = json.loads((folder / "config.json").read_text())
    found = transformers.about(config)
    found["model"] = about.get("model", {}) | found["model"]
    about |= found
    images = folder / "preprocessor_config.json"
    if images.is_file():
      about |= transformers.statistics(json.loads(images.read_text()))
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(
      f"{folder} is no whole folder of transformers: its config is missing or"
      f" damaged ({type(e).__name__}: {e})"
    ) from e
  return dataclasses.replace(given, about=about)


def to_text(about):
  """What is known of weights as metadata: name -> text."""
  return PRODUCER | {
    key: about[key] if key in TEXTS else json.dumps(about[key])
    for key in ABOUT
    if key in about
  }


def from_text(metadata):
  """The inverse of `to_text`; what is not ours is left out."""
  if not PRODUCER.items() <= metadata.items():
    return {}
  return {
    key: metadata[key] if key in TEXTS else json.loads(metadata[key])
    for key in ABOUT
    if key in metadata
  }


def fit(given, model, what):
  """Puts weights into a model without classes, by name and strictly.

  Args:
    given: a Pretrained.
    model: a model of `models.build`, with num_classes=0.
    what: the weights, for messages, such as "init_from=A".

  Returns:
    The parameters, with those of a head if the weights have one; and a sentence
    for each thing that was left out or resized.

  Raises:
    UserError: they are of another model; it lists what does not fit.
  """
  check_sizes(given, model, what)
  params = given.arrays
  if not any(isinstance(x, dict) for x in params.values()):
    foreign = recognise.with_sizes_of(params, model)
    layout = recognise.layout(params, foreign, interop.LAYOUTS)
    try:
      params = interop.from_torch(params, foreign, layout)
    except UserError as e:
      raise UserError(f"{what}: {e}") from e
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  head = {"head": params["head"]} if "head" in params else {}
  params = {name: x for name, x in params.items() if name != "head"}
  params, lines = models.resize_parameters(params, model)
  models.check_parameters(models.shapes(model), params, what)
  if given.left_out:
    few = ", ".join(given.left_out[:5])
    more = ", ..." if len(given.left_out) > 5 else ""
    lines.insert(0, f"left out: {few}{more}")
  return params | head, [f"{what}: {line}" for line in lines]


def check_sizes(given, model, what):
  """Raises a UserError where weights are of another kind of model.

  Some sizes change no parameter's shape, and so have to be compared.
  """
  names = traverse_util.flatten_dict(given.arrays, sep="/")
  theirs = recognise.architecture(names)
  ours = next(k for k, v in models.ARCHITECTURES.items() if type(model) is v)
  if theirs != ours:
    raise UserError(
      f"{what} holds no weights of a {ours}"
      + (f" but those of a {theirs}" if theirs else "")
    )
  sizes = given.about.get("model", {})
  for key in ("num_heads", "locality"):
    old, new = sizes.get(key, getattr(model, key)), getattr(model, key)
    if not np.array_equal(old, new):
      raise UserError(
        f"{what} was trained with model.{key}={old!r} and not {new!r}"
      )


def head(params, about, classes):
  """What becomes of the head of weights, where a model is to tell classes.

  Args:
    params: as of `fit`.
    about: what is known of the weights.
    classes: names of the classes, in the order of the logits.

  Returns:
    Whether it can stay, and a sentence on that, or "" where there is no head.
  """
  if "head" not in params:
    return False, ""
  count = params["head"]["kernel"].shape[-1]
  known = about.get("classes") or None
  if count != len(classes):
    return (
      False,
      f"a new head of {len(classes)} classes, as the old one has {count}",
    )
  if known and list(known) != list(classes):
    return False, (
      f"a new head: the old one's {count} classes have other names, or another"
      " order"
    )
  return True, f"its head of {count} classes is kept"
