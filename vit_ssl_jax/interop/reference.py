"""The names and layouts of the paper's PyTorch code.

There a linear layer's weight is (out, in), a convolution's (out, in, kh, kw);
here they are (in, out) and (kh, kw, in, out). CaiT's blocks are stacked along a
leading axis here, and have a name each there.
"""

import re

import jax
import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import swin

INDEX = "relative_position_index"
# Patterns of our names, and their replacements in the reference.
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
  """Converts parameters; those of model.locality keep our names."""
  state = weights(params, model)
  return state | position_indices(state)


def weights(params, model):
  """Returns `to_torch` without constants."""
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
  """Returns Swin's constants, (window², window²) int64 for each table."""
  indices = {}
  for name, x in state.items():
    if name.endswith("relative_position_bias_table"):
      window = (round(len(x) ** 0.5) + 1) // 2
      name = name.replace("relative_position_bias_table", INDEX)
      indices[name] = swin.relative_position_index(window)
  return indices


def from_torch(state_dict, model):
  """Converts a state dict as the package's `from_torch` does."""
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
  """Checks that windows' tokens are numbered row by row."""
  for name, index in position_indices(state).items():
    if not np.array_equal(state[name], index):
      raise UserError(f"{name} is not that of windows numbered row by row")


def from_weights(state, template, model):
  """Inverts `weights`: name -> array to a tree like the template."""

  def read(path, leaf):
    keys = [key.key for key in path]
    names = torch_names(keys, len(leaf) if stacked(keys) else 1, model)
    shape = leaf.shape[1:] if stacked(keys) else leaf.shape
    pieces = [from_layout(keys, state[name], shape) for name in names]
    return np.stack(pieces) if stacked(keys) else pieces[0]

  return jax.tree_util.tree_map_with_path(read, template)


def template(model, state):
  """Returns zeros in the shapes of a model's parameters, without memory."""
  return jax.tree.map(
    lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),
    abstract_params(model, state),
  )


def abstract_params(model, state):
  """Returns the shapes of a model's parameters, without computing any."""
  if not isinstance(model, models.ProjectionHead):
    return models.shapes(model)
  width = state.get("mlp.0.weight", np.zeros((0, 1))).shape[1]
  inputs = jax.ShapeDtypeStruct((1, width), np.float32)
  return jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]


def stacked(keys):
  """True if a parameter has a leading axis over blocks."""
  return keys[0] == "blocks"


def torch_names(keys, count, model):
  """Returns the reference's name of each slice of a parameter."""
  leaf = {"kernel": "weight", "scale": "weight"}.get(keys[-1], keys[-1])
  name = ".".join([*keys[:-1], leaf])
  if stacked(keys):
    inner = name.removeprefix("blocks.")
    return [f"blocks.{i}.{inner}" for i in range(count)]
  if has_linear_patches(model):
    name = name.replace("patch_embed.proj", "patch_embed.1")
  for pattern, replacement in RENAMED:
    name = re.sub(pattern, replacement, name)
  return [name]


def to_layout(keys, x, model):
  """Converts one parameter to PyTorch's layout."""
  if x.ndim == 4:  # a convolution over patches
    x = x.transpose(3, 2, 0, 1)
    linear = has_linear_patches(model) or model.has("spt")
    x = x.transpose(0, 2, 3, 1).reshape(len(x), -1) if linear else x
  elif keys[-1] == "kernel":
    x = x.T
  return np.array(x, order="C")  # which safetensors takes for granted


def has_linear_patches(model):
  """True if the reference embeds patches by a linear layer, as in CaiT."""
  return isinstance(model, models.CaiT)


def from_layout(keys, x, shape):
  """Converts one parameter to our layout and shape."""
  if x.ndim == 4:
    x = x.transpose(2, 3, 1, 0)
  elif keys[-1] == "kernel":
    x = x.T
  return np.array(x).reshape(shape)
