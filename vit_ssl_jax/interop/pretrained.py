"""Initial weights: of a run, an Orbax checkpoint or an exported file."""

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
  read as reader,
  recognise,
  transformers,
)
from vit_ssl_jax.run import checkpoints, workdir as workdirs

SAFETENSORS = "model.safetensors"  # of a folder of transformers


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Weights and their metadata."""

  path: str
  arrays: dict  # our own parameters, nested, or foreign name -> array
  about: dict  # of `metadata.KEYS`
  left_out: tuple[str, ...] = ()  # names of the file's other content
  workdir: pathlib.Path | None = None  # of a run

  @property
  def architecture(self):
    """The architecture by the metadata, or else by the names; or ""."""
    names = traverse_util.flatten_dict(self.arrays, sep="/")
    return self.about.get("architecture") or recognise.architecture(names)

  @property
  def num_classes(self):
    """The number of classes of the head; 0 without one."""
    head = self.arrays.get("head")
    if isinstance(head, dict) and np.ndim(head.get("kernel")) == 2:
      return head["kernel"].shape[-1]
    heads = [x for x in recognise.HEADS if x in self.arrays]
    return len(self.arrays[heads[0]]) if heads else 0


def read(path):
  """Reads weights and their metadata, or raises a UserError.

  The path is a workdir, one of its checkpoints, a checkpoint of Orbax, a folder
  of transformers, a safetensors, npz or PyTorch file, or a name of
  `interop.authors`.
  """
  weights = read_any(path)
  provenance.check(weights.about, weights.num_classes, path)
  return weights


def read_any(path):
  """Reads weights without checking their metadata."""
  if str(path).startswith(authors.PREFIX):
    weights = read_file(path, authors.download(str(path)))
    about = weights.about | authors.about(str(path))
    return dataclasses.replace(weights, about=about)
  folder = pathlib.Path(path)
  if not folder.exists():
    raise UserError(f"there is no file or folder {path}")
  if folder.suffix == ".stablehlo":
    raise UserError(f"{path} is a compiled program, not weights")
  if not folder.is_dir():
    return read_file(path)
  if checkpoints.workdir_of(folder):
    return read_run(path)
  if (folder / SAFETENSORS).is_file():
    return read_transformers(folder)
  if checkpoints.is_tree(folder):
    tree, metadata = checkpoints.read_tree(folder)
    params, part = backbone_of(tree, path)
    about = {"part": part} | provenance.from_text(metadata, path)
    return Pretrained(str(path), params, about)
  return read_run(path)  # which says what is missing


def read_run(path):
  """Reads the teacher's backbone of a pretraining, or a classifier."""
  state, config = checkpoints.read(path)
  params, part = backbone_of(state, path)
  workdir = checkpoints.workdir_of(path)
  facts = workdir / "dataset.json"
  dataset = files.read_json(facts) if facts.is_file() else {}
  weights = Pretrained(str(path), params, {}, workdir=workdir)
  step = int(state["step"])
  about = {
    "architecture": config["model"]["name"],
    "model": config["model"] | {"num_classes": weights.num_classes},
    "part": part,
    "classes": dataset.get("classes", []),
    "mean": config.get("mean", []),
    "std": config.get("std", []),
    "dataset": config["dataset"],
    "images": dataset.get("images", {}),
    "step": step,
    "config": config,
    "result": workdirs.finished(workdir, step) or {},
  }
  return dataclasses.replace(weights, about=about)


def backbone_of(tree, path):
  """Returns the parameters in a checkpoint's tree, and the model's part."""
  part = ""
  params = tree.get("params", tree) if isinstance(tree, dict) else None
  if isinstance(tree, dict) and "teacher" in tree:
    part, teacher = "teacher's backbone", tree["teacher"]
    params = teacher.get("backbone") if isinstance(teacher, dict) else None

  def is_tree(x):
    if isinstance(x, dict):
      return all(isinstance(k, str) and is_tree(v) for k, v in x.items())
    return isinstance(x, np.ndarray)

  if not (isinstance(params, dict) and is_tree(params)):
    raise UserError(f"{path} holds no parameters: no nested dicts of arrays")
  return params, part or ("classifier" if "head" in params else "backbone")


def read_file(path, file=None):
  """Reads the weights of a file, `path` if None."""
  content = reader.read_file(file or path)
  arrays, left_out = content.arrays, list(content.left_out)
  if any("/" in name for name in arrays):  # our own names
    try:
      arrays = traverse_util.unflatten_dict(arrays, sep="/")
    except (IndexError, TypeError, AttributeError, ValueError) as e:
      raise UserError(f"{path} holds no tree of names") from e
    arrays, _ = backbone_of(arrays, path)
  else:  # transformers' ViTModel has a pooler, which no classifier uses
    left_out += [name for name in arrays if name.startswith("pooler.")]
    arrays = {k: x for k, x in arrays.items() if k not in left_out}
  about = provenance.from_text(content.metadata, path)
  return Pretrained(str(path), arrays, about, tuple(left_out))


def read_transformers(folder):
  """Reads a folder of transformers."""
  weights = read_file(folder / SAFETENSORS)
  about = dict(weights.about)  # weaker than config.json: trained since, maybe
  config = files.read_json(folder / "config.json")
  images = folder / "preprocessor_config.json"
  try:
    described = transformers.about(config)
    described["model"] = about.get("model", {}) | described["model"]
    about |= described
    if images.is_file():
      about |= transformers.statistics(files.read_json(images))
  except UserError:
    raise
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f"{folder}: its config is invalid or lacks {e}") from e
  return dataclasses.replace(weights, path=str(folder), about=about)


def fit(weights, model, source):
  """Converts weights to parameters of a model, by name and strictly.

  Args:
    weights: Pretrained.
    model: a model of `models.build`, with num_classes=0.
    source: a name of the weights for messages, such as "init_from=A".

  Returns:
    The parameters, with a head if the weights have one; and a sentence for
    everything that was left out or resized.

  Raises:
    UserError: the weights are another model's; it lists what does not fit.
  """
  check_sizes(weights, model, source)
  params = weights.arrays
  if not any(isinstance(x, dict) for x in params.values()):
    original = recognise.with_sizes_of(params, model)
    layout = recognise.layout(params, original, interop.LAYOUTS)
    try:
      params = interop.from_torch(params, original, layout)
    except UserError as e:
      raise UserError(f"{source}: {e}") from e
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  params, notes = models.resize_parameters(params, model)
  expected = models.shapes(model.clone(num_classes=weights.num_classes))
  models.check_parameters(expected, params, source)
  if weights.left_out:
    few = ", ".join(weights.left_out[:5])
    more = ", ..." if len(weights.left_out) > 5 else ""
    notes.insert(0, f"left out: {few}{more}")
  return params, [f"{source}: {note}" for note in notes]


def check_sizes(weights, model, source):
  """Compares the architecture, and sizes that change no parameter's shape."""
  arch = models.name_of(model)
  if weights.architecture != arch:
    other = weights.architecture and f" but those of a {weights.architecture}"
    raise UserError(f"{source} holds no weights of a {arch}{other}")
  sizes = weights.about.get("model", {})
  for key in ("num_heads", "locality"):
    new = getattr(model, key, None)
    old = sizes.get(key, new)
    if not np.array_equal(old, new):
      raise UserError(
        f"{source} was trained with model.{key}={old!r} and not {new!r}"
      )


def head(params, about, classes):
  """Decides whether a pretrained classifier head can be kept, and says why."""
  if "head" not in params:
    return False, ""
  old, new = params["head"]["kernel"].shape[-1], len(classes)
  names = about.get("classes")
  if old != new:
    return False, f"a new head of {new} classes, as the old one has {old}"
  if not names:
    return True, f"its head of {old} classes is kept; their names are unknown"
  if list(names) == list(classes):
    return True, f"its head of {old} classes is kept"
  return False, (
    f"a new head: the old one's {old} classes have other names or another order"
  )
