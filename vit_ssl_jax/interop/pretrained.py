"""Weights to begin from: of a run, of an Orbax checkpoint, or of any file."""

import dataclasses
import pathlib

import jax
import numpy as np
from flax import traverse_util

from vit_ssl_jax import files, interop, models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import (
  authors,
  metadata as provenance,
  programs,
  recognise,
  transformers,
  weights,
)
from vit_ssl_jax.run import checkpoints, workdir as workdirs

SAFETENSORS = "model.safetensors"  # of a folder of transformers'
# What other folders of transformers hold, and what there is to say.
ELSEWHERE = {
  "pytorch_model.bin": "give its pytorch_model.bin itself",
  "model.safetensors.index.json": "its weights lie in several files",
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Weights, and what is known of them.

  Attributes:
    path: where they are from, as it was given.
    arrays: our own parameters, nested dicts, or name -> array of other names.
    about: what is known of `provenance.KEYS`.
    left_out: names of what is there beside them.
    workdir: the run's folder, if it is a run.
  """

  path: str
  arrays: dict
  about: dict
  left_out: tuple[str, ...] = ()
  workdir: pathlib.Path | None = None

  @property
  def architecture(self):
    """Its name: as they say themselves, or as their names tell; or ""."""
    names = traverse_util.flatten_dict(self.arrays, sep="/")
    return self.about.get("architecture") or recognise.architecture(names)

  @property
  def num_classes(self):
    """How many classes their head has; 0 without one."""
    head = self.arrays.get("head")
    if isinstance(head, dict) and np.ndim(head.get("kernel")) == 2:
      return head["kernel"].shape[-1]
    heads = [x for x in recognise.HEADS if x in self.arrays]
    return len(self.arrays[heads[0]]) if heads else 0


def read(path):
  """Reads weights, and what is known of them.

  Args:
    path: a workdir, one of its checkpoints, a checkpoint of Orbax, a folder of
      transformers', a file that `interop.weights.read` reads, or a name of
      `interop.authors`.

  Raises:
    UserError: it is none of them, damaged, or a pickle that would execute
      something.
  """
  given = found_at(path)
  provenance.check(given.about, given.num_classes, path)
  return given


def found_at(path):
  """As `read`, without looking at what is said."""
  if str(path).startswith(authors.PREFIX):
    given = of_file(path, weights.read(authors.download(str(path))))
    about = given.about | authors.about(str(path))
    return dataclasses.replace(given, about=about)
  folder = pathlib.Path(path)
  if not folder.exists():
    raise UserError(f"there is no file or folder {path}")
  if not folder.is_dir():
    if programs.is_program(path):
      raise UserError(
        f"{path} is a compiled program, whose weights cannot be taken out"
      )
    return of_file(path, weights.read(path))
  if checkpoints.workdir_of(folder):
    return of_run(path)
  if (folder / SAFETENSORS).is_file():
    return of_transformers(path)
  if checkpoints.is_tree(folder):
    tree, metadata = checkpoints.read_tree(folder)
    params, part = backbone_of(tree, path)
    about = {"part": part} | provenance.from_text(metadata, path)
    return Pretrained(str(path), params, about)
  for name in ELSEWHERE:
    if (folder / name).is_file():
      raise UserError(f"{path} is no folder that is read: {ELSEWHERE[name]}")
  return of_run(path)  # which says what is missing


def of_run(path):
  """The teacher's backbone of a pretraining, or a classifier."""
  state, config = checkpoints.read(path)
  params, part = backbone_of(state, path)
  workdir = checkpoints.workdir_of(path)
  about = workdir / "dataset.json"
  dataset = files.read_json(about) if about.is_file() else {}
  given = Pretrained(str(path), params, {}, workdir=workdir)
  return dataclasses.replace(
    given,
    about={
      "architecture": config["model"]["name"],
      "model": config["model"] | {"num_classes": given.num_classes},
      "part": part,
      "classes": dataset.get("classes", []),
      "mean": config.get("mean", []),
      "std": config.get("std", []),
      "dataset": config["dataset"],
      "images": dataset.get("images", {}),
      "step": int(state["step"]),
      "config": config,
      "result": workdirs.finished(workdir, int(state["step"])) or {},
    },
  )


def backbone_of(tree, path):
  """The parameters in a checkpoint's tree, and what they are.

  Raises:
    UserError: they are no nested dicts of arrays.
  """
  part = ""
  if isinstance(tree, dict) and "teacher" in tree:
    tree, part = tree["teacher"], "teacher's backbone"
    params = tree.get("backbone") if isinstance(tree, dict) else None
  else:
    params = tree.get("params", tree) if isinstance(tree, dict) else None

  def named(x):
    if isinstance(x, dict):
      return all(isinstance(k, str) and named(v) for k, v in x.items())
    return isinstance(x, np.ndarray)

  if not (isinstance(params, dict) and named(params)):
    raise UserError(f"{path} holds no parameters: no nested dicts of arrays")
  return params, part or ("classifier" if "head" in params else "backbone")


def of_file(path, found):
  """The Pretrained of `weights.Weights`."""
  arrays, about = found.arrays, provenance.from_text(found.metadata, path)
  left_out = list(found.left_out)
  if any("/" in name for name in arrays):  # our own names
    try:
      arrays = traverse_util.unflatten_dict(arrays, sep="/")
    except (IndexError, TypeError, AttributeError, ValueError) as e:
      raise UserError(f"{path} holds no tree of names") from e
    arrays, _ = backbone_of(arrays, path)
  else:  # transformers' ViTModel has one more layer, which is of no use here
    left_out += [name for name in arrays if name.startswith("pooler.")]
    arrays = {k: x for k, x in arrays.items() if k not in left_out}
  return Pretrained(str(path), arrays, about, tuple(left_out))


def of_transformers(path):
  """The Pretrained of a folder as transformers writes it.

  It may have been trained there since we wrote it: its config counts.
  """
  folder = pathlib.Path(path)
  given = of_file(path, weights.read(folder / SAFETENSORS))
  about = dict(given.about)
  config = files.read_json(folder / "config.json")
  images = folder / "preprocessor_config.json"
  seen = files.read_json(images) if images.is_file() else {}
  try:
    found = transformers.about(config)
    found["model"] = about.get("model", {}) | found["model"]
    about |= found
    if seen:
      about |= transformers.statistics(seen)
  except UserError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f"{folder} is no folder of transformers that is read: its config lacks"
      f" or misuses {e}"
    ) from e
  return dataclasses.replace(given, about=about)


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
  params, lines = models.resize_parameters(params, model)
  expected = models.shapes(model.clone(num_classes=given.num_classes))
  models.check_parameters(expected, params, what)
  if given.left_out:
    few = ", ".join(given.left_out[:5])
    more = ", ..." if len(given.left_out) > 5 else ""
    lines.insert(0, f"left out: {few}{more}")
  return params, [f"{what}: {line}" for line in lines]


def check_sizes(given, model, what):
  """Raises a UserError where weights are of another kind of model.

  Some sizes change no parameter's shape, and so have to be compared.
  """
  theirs = given.architecture
  ours = models.name_of(model)
  if theirs != ours:
    raise UserError(
      f"{what} holds no weights of a {ours}"
      + (f" but those of a {theirs}" if theirs else "")
    )
  sizes = given.about.get("model", {})
  for key in ("num_heads", "locality"):
    new = getattr(model, key, None)
    old = sizes.get(key, new)
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
  unsure = "" if known else ", though it does not say which they are"
  return True, f"its head of {count} classes is kept{unsure}"
