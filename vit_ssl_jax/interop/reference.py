"""The names and layouts of the paper's PyTorch code.

There a linear layer's weight is (out, in), a convolution's (out, in, kh, kw),
and every block has names of its own (`blocks.3.attn.qkv.weight`); here kernels
are (in, out), patches are cut row by row with the channel last, and blocks are
stacked along a leading axis. Swin's blocks are stacked in pairs, and its table
of relative positions, a constant, is among the names there.
"""

import jax
import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.cli import UserError
from vit_ssl_jax.models import windows

INDEX = "relative_position_index"
HEAD_NAMES = {"fc1": "mlp.0", "fc2": "mlp.2", "fc3": "mlp.4"}


def to_torch(params, model):
  """Gives parameters the reference's names and layouts.

  What locality adds to a model has no counterpart there, and keeps the name it
  has here.

  Args:
    params: parameters of `model`, as `model.init` made them.
    model: a model of `models.build`, or a `models.ProjectionHead`.

  Returns:
    A dict from name to NumPy array: float32, and int64 for Swin's constant
    `relative_position_index`.
  """
  state = weights(params, model)
  return state | position_indices(state)


def weights(params, model):
  """What `to_torch` gives, without constants."""
  state = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    keys = [key.key for key in path]
    leaf = np.asarray(leaf)
    slices = leaf if stacked(keys) else leaf[None]
    names = torch_names(keys, len(slices), model)
    for name, piece in zip(names, slices, strict=True):
      state[name] = to_layout(keys, piece, model)
  if isinstance(model, models.ProjectionHead):
    state["last_layer.weight_g"] = np.ones((model.out_dim, 1), np.float32)
  return state


def position_indices(state):
  """What Swin's code stores beside each table: (window², window²) int64."""
  indices = {}
  for name, x in state.items():
    if name.endswith("relative_position_bias_table"):
      window = (round(len(x) ** 0.5) + 1) // 2
      name = name.replace("relative_position_bias_table", INDEX)
      indices[name] = windows.relative_position_index(window)
  return indices


def from_torch(state_dict, model):
  """Reads parameters that carry the reference's names, strictly by name.

  Args:
    state_dict: name to array (anything that NumPy reads).
    model: a model of `models.build`, or a `models.ProjectionHead`, whose input
      width is then read from the weights.

  Returns:
    The parameters of `model`, float32.

  Raises:
    UserError: names are missing or left over, or shapes differ; it lists them.
  """
  state = as_floats(state_dict)
  zeros = template(model, state)
  models.check_parameters(to_torch(zeros, model), state, "the state dict")
  if np.any(state.get("last_layer.weight_g", 1.0) != 1):
    raise UserError("last_layer.weight_g is not 1: the head's gain is fixed")
  check_positions(state)
  return from_weights(state, zeros, model)


def as_floats(state_dict):
  return {name: np.asarray(x, np.float32) for name, x in state_dict.items()}


def check_positions(state):
  """Raises a UserError where windows' tokens are numbered in another way."""
  for name, index in position_indices(state).items():
    if not np.array_equal(state[name], index):
      raise UserError(f"{name} is not that of windows numbered row by row")


def from_weights(state, template, model):
  """Puts arrays of the reference's names into a tree like the template."""

  def read(path, leaf):
    keys = [key.key for key in path]
    names = torch_names(keys, len(leaf) if stacked(keys) else 1, model)
    pieces = [from_layout(keys, state[name]) for name in names]
    return np.stack(pieces) if stacked(keys) else pieces[0]

  return jax.tree_util.tree_map_with_path(read, template)


def template(model, state):
  """Zeros in the shapes of a model's parameters, which take no memory."""
  return jax.tree.map(
    lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),
    abstract_params(model, state),
  )


def abstract_params(model, state):
  """The shapes of a model's parameters, without computing any."""
  if not isinstance(model, models.ProjectionHead):
    return models.shapes(model)
  width = state.get("mlp.0.weight", np.zeros((0, 1))).shape[1]
  inputs = jax.ShapeDtypeStruct((1, width), np.float32)
  return jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]


def stacked(keys):
  """Whether a parameter has a leading axis over blocks."""
  return keys[0].startswith("blocks")


def torch_names(keys, count, model):
  """The reference's name of each slice of a parameter."""
  *modules, leaf = keys
  if modules == ["last_layer"]:
    return ["last_layer.weight_v"]
  leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
  return [
    ".".join([*prefix, leaf]) for prefix in torch_modules(modules, count, model)
  ]


def torch_modules(modules, count, model):
  """The reference's modules, for each slice, of a parameter's modules."""
  match modules:
    case ["patch_embed", "proj"] if isinstance(model, models.CaiT):
      return [["patch_embed", "1"]]
    case [("blocks" | "blocks_token_only") as name, *inner]:
      return [[name, str(i), *inner] for i in range(count)]
    case [name, ("regular" | "shifted") as kind, *inner]:
      stage = ["layers", name.removeprefix("blocks_"), "blocks"]
      odd = kind == "shifted"
      return [[*stage, str(2 * i + odd), *inner] for i in range(count)]
    case [name, *inner] if name.startswith("last_block_"):
      stage = name.removeprefix("last_block_")
      last = model.depths[int(stage)] - 1
      return [["layers", stage, "blocks", str(last), *inner]]
    case [name, *inner] if name.startswith("downsample_"):
      return [
        ["layers", name.removeprefix("downsample_"), "downsample", *inner]
      ]
    case [("fc1" | "fc2" | "fc3") as name]:
      return [[HEAD_NAMES[name]]]
  return [modules]


def is_convolution(keys, model):
  """Whether the reference projects patches by a convolution."""
  if keys[0] != "patch_embed":
    return False
  return not isinstance(model, models.CaiT) and not model.has("spt")


def to_layout(keys, x, model):
  """One parameter in PyTorch's layout."""
  if keys[-1] == "kernel" and is_convolution(keys, model):
    p = model.patch_size
    x = x.reshape(p, p, -1, x.shape[-1]).transpose(3, 2, 0, 1)
  elif keys[-1] == "kernel":
    x = x.T
  return np.array(x, order="C")  # as what writes files takes for granted


def from_layout(keys, x):
  """One parameter in our layout."""
  if keys[-1] != "kernel":
    return np.array(x)
  if x.ndim == 4:  # a convolution over patches
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])
  return np.array(x.T)
