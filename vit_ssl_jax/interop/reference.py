"""The names and layouts of the paper's PyTorch code.

There a linear layer's weight is (out, in), a convolution's (out, in, kh, kw);
here they are (in, out) and (kh, kw, in, out), and CaiT's blocks, each with a
name of its own there, are stacked along a leading axis. Among the names there
is a constant, Swin's table of relative positions.
"""

import re

import jax
import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import swin

INDEX = "relative_position_index"
# Patterns of our names, and the reference's.
RENAMED = [
  (r"^blocks_(\d+)_(\d+)\.", r"layers.\1.blocks.\2."),  # Swin's
  (r"^blocks_(\d+)\.", r"blocks.\1."),
  (r"^blocks_token_only_(\d+)\.", r"blocks_token_only.\1."),
  (r"^downsample_(\d+)\.", r"layers.\1.downsample."),
  (r"^fc1\.", "mlp.0."),  # the projection head's
  (r"^fc2\.", "mlp.2."),
  (r"^fc3\.", "mlp.4."),
  (r"^last_layer\.weight", "last_layer.weight_v"),
]


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
      indices[name] = swin.relative_position_index(window)
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
    shape = leaf.shape[1:] if stacked(keys) else leaf.shape
    pieces = [from_layout(keys, state[name], shape) for name in names]
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
  return keys[0] == "blocks"


def torch_names(keys, count, model):
  """The reference's name of each slice of a parameter."""
  leaf = {"kernel": "weight", "scale": "weight"}.get(keys[-1], keys[-1])
  name = ".".join([*keys[:-1], leaf])
  if stacked(keys):
    inner = name.removeprefix("blocks.")
    return [f"blocks.{i}.{inner}" for i in range(count)]
  if isinstance(model, models.CaiT):
    name = name.replace("patch_embed.proj", "patch_embed.1")
  for ours, theirs in RENAMED:
    name = re.sub(ours, theirs, name)
  return [name]


def to_layout(keys, x, model):
  """One parameter in PyTorch's layout."""
  if x.ndim == 4:  # a convolution over patches
    x = x.transpose(3, 2, 0, 1)
    linear = isinstance(model, models.CaiT) or model.has("spt")
    x = x.transpose(0, 2, 3, 1).reshape(len(x), -1) if linear else x
  elif keys[-1] == "kernel":
    x = x.T
  return np.array(x, order="C")  # as what writes files takes for granted


def from_layout(keys, x, shape):
  """One parameter in our layout, of this shape."""
  if x.ndim == 4:
    x = x.transpose(2, 3, 1, 0)
  elif keys[-1] == "kernel":
    x = x.T
  return np.array(x).reshape(shape)
