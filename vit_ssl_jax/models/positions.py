"""Position embeddings and relative positions, resized to another size."""

import math
import re

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vit_ssl_jax.models import layers

TABLE = "relative_position_bias_table"


def resize(embedding, grid, new_grid):
  """Resizes position embeddings (1, h·w, D) from a grid (h, w) to another.

  "Dynamic position embeddings" of the paper, section 3.1; its code adds 0.1 to
  the new size.
  """
  if tuple(grid) == tuple(new_grid):
    return embedding
  rows = cubic_matrix(grid[0], new_grid[0], 0.1)
  columns = cubic_matrix(grid[1], new_grid[1], 0.1)
  D = embedding.shape[-1]
  square = embedding.reshape(*grid, D)
  return jnp.einsum(
    "yh,xw,hwd->yxd", rows, columns, square, precision=layers.EXACT
  ).reshape(1, -1, D)


def cubic_matrix(size, new_size, extra):
  """Weights of PyTorch's bicubic interpolation along one axis.

  (a = -0.75, half-pixel centres, borders repeated, no antialiasing.)

  Args:
    size: length.
    new_size: length to resize to.
    extra: the scale factor is (new_size + extra) / size.

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
    weights = np.where(d <= 1, near, far)
    np.add.at(matrix, (np.arange(new_size), column), weights)
  return matrix.astype(np.float32)


def resize_parameters(params, shapes):
  """Resizes position embeddings and tables of relative positions.

  Position embeddings are resized as for small views (the paper, section 3.1),
  tables as by Swin's authors, by bicubic interpolation.

  Args:
    params: of a model that differs in image_size or window_size.
    shapes: parameters of the new sizes, arrays or their shapes.

  Returns:
    The parameters, and a sentence for each kind that was resized. Arrays that
    cannot be resized stay as they are.
  """
  flat, sentences = traverse_util.flatten_dict(params), set()
  targets = traverse_util.flatten_dict(shapes)
  for path in flat.keys() & targets.keys():
    x, shape = flat[path], targets[path].shape
    if x.ndim != len(shape) or x.shape == shape:
      continue
    if path[-1] == "pos_embed":
      flat[path], sentence = resized_embedding(x, shape[1])
      sentences.add(sentence)
    elif path[-1] == TABLE:
      flat[path], sentence = resized_table(x, shape[0], path[0])
      sentences.add(sentence)
  return traverse_util.unflatten_dict(flat), sorted(sentences - {""})


def resized_embedding(embedding, length):
  """Embeddings (1, N, D) of a class token, if any, and patches, resized."""
  new = math.isqrt(length)
  tokens = length - new**2  # 1 with a class token
  old = math.isqrt(embedding.shape[1] - tokens)
  if old == new or old**2 + tokens != embedding.shape[1]:
    return embedding, ""
  patches = resize(embedding[:, tokens:], (old, old), (new, new))
  return np.concatenate([embedding[:, :tokens], patches], 1), (
    f"position embeddings are resized from {old} x {old} patches to"
    f" {new} x {new}"
  )


def resized_table(table, length, block):
  """A table ((2 · window - 1)², heads), resized to another window."""
  old, new = math.isqrt(len(table)), math.isqrt(length)
  if old**2 != len(table) or old % 2 == 0:
    return table, ""
  matrix = cubic_matrix(old, new, 0)
  square = table.reshape(old, old, -1)
  square = np.einsum("yh,xw,hwd->yxd", matrix, matrix, square)
  stage = re.search(r"\d+", block)[0]
  return square.reshape(new**2, -1), (
    f"relative positions of stage {stage} are resized from windows of"
    f" {(old + 1) // 2} to {(new + 1) // 2}"
  )
