"""Position embeddings and relative positions, resized to another size."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

TABLE = "relative_position_bias_table"


def resize(embedding, grid, new_grid):
  """Resizes position embeddings (1, h·w, D) from one grid (h, w) to another.

  "Dynamic position embeddings" of the paper, section 3.1, whose code adds 0.1
  to the size wanted. Returns (1, h'·w', D), unchanged where the grids are the
  same.
  """
  if tuple(grid) == tuple(new_grid):
    return embedding
  rows = cubic_matrix(grid[0], new_grid[0], 0.1)
  columns = cubic_matrix(grid[1], new_grid[1], 0.1)
  D = embedding.shape[-1]
  return jnp.einsum(
    "yh,xw,hwd->yxd",
    rows,
    columns,
    embedding.reshape(*grid, D),
    precision=jax.lax.Precision.HIGHEST,
  ).reshape(1, -1, D)


def cubic_matrix(size, new_size, extra):
  """The weights with which a row of positions is resized.

  They are those of PyTorch's bicubic interpolation (a = -0.75, half-pixel
  centres, borders repeated, no antialiasing) under the scale factor
  (new_size + extra) / size.

  Args:
    size: length of the given row.
    new_size: length wanted.
    extra: 0 where the factor is the sizes' ratio.

  Returns:
    (new_size, size) float32 NumPy array.
  """
  a = -0.75
  position = (np.arange(new_size) + 0.5) * size / (new_size + extra) - 0.5
  first = np.floor(position).astype(int)
  matrix = np.zeros((new_size, size))
  for tap in range(-1, 3):
    d = np.abs(position - (first + tap))
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    column = np.clip(first + tap, 0, size - 1)
    np.add.at(
      matrix, (np.arange(new_size), column), np.where(d <= 1, near, far)
    )
  return matrix.astype(np.float32)


def resize_parameters(params, shapes):
  """Resizes position embeddings and tables of relative positions.

  Position embeddings are resized as the models do it for views of another size
  (the paper, section 3.1), tables as Swin's authors do it, by bicubic
  interpolation.

  Args:
    params: of a model that differs in image_size or window_size.
    shapes: the parameters wanted, arrays or their shapes.

  Returns:
    The parameters, and a sentence for each thing that was resized. What is of
    no size that can be resized stays as it is.
  """
  flat, lines = traverse_util.flatten_dict(params), {}
  wanted = traverse_util.flatten_dict(shapes)
  for path in flat.keys() & wanted.keys():
    x, shape = flat[path], wanted[path].shape
    if x.ndim != len(shape) or x.shape == shape:
      continue
    if path[-1] == "pos_embed":
      flat[path], line = resized_embedding(x, shape[1])
      lines[line] = None
    elif path[-1] == TABLE:
      flat[path], line = resized_table(x, shape[0], path[0])
      lines[line] = None
  return traverse_util.unflatten_dict(flat), sorted(filter(None, lines))


def resized_embedding(embedding, length):
  """Embeddings (1, N, D), of class token and patches, to (1, length, D)."""
  new = math.isqrt(length)
  tokens = length - new**2  # the class token's, where it has one
  old = math.isqrt(embedding.shape[1] - tokens)
  if old == new or old**2 + tokens != embedding.shape[1]:
    return embedding, ""
  patches = resize(embedding[:, tokens:], (old, old), (new, new))
  line = (
    f"position embeddings are resized from {old} x {old} patches to"
    f" {new} x {new}"
  )
  return np.concatenate([embedding[:, :tokens], patches], 1), line


def resized_table(biases, length, block):
  """Biases (N, heads) of the relative positions of a window, (length, heads).

  Both lengths are (2 · window - 1)².
  """
  old, new = math.isqrt(len(biases)), math.isqrt(length)
  if old**2 != len(biases) or old % 2 == 0:
    return biases, ""
  matrix = cubic_matrix(old, new, 0)
  square = biases.reshape(old, old, -1)
  square = np.einsum("yh,xw,hwd->yxd", matrix, matrix, square)
  stage = re.search(r"\d+", block)[0]
  line = (
    f"relative positions of stage {stage} are resized from windows of"
    f" {(old + 1) // 2} to {(new + 1) // 2}"
  )
  return square.reshape(new**2, -1), line
