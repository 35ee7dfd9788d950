"""Parameters that go with an image's size, made to fit another size."""

import math

import jax
import numpy as np

from vit_ssl_jax.models import patches
from vit_ssl_jax.models.vit import VisionTransformer

TABLE = "relative_position_bias_table"


def resize_parameters(params, model):
  """Resizes position embeddings and tables of relative positions.

  Position embeddings are resized as the models do it for views of another size
  (the paper, section 3.1), tables as Swin's authors do it, by bicubic
  interpolation.

  Args:
    params: of a model that differs from this one in image_size or window_size.
    model: a model of `build`.

  Returns:
    The parameters, and a sentence for each thing that was resized. What is of
    no size that can be resized stays as it is.
  """
  lines = {}

  def resized(path, x):
    keys = [key.key for key in path]
    if keys[-1] == "pos_embed":
      x, line = positions(x, model)
    elif keys[-1] == TABLE:
      x, line = table(x, int(keys[0].rpartition("_")[2]), model)
    else:
      line = ""
    lines[line] = None
    return x

  params = jax.tree_util.tree_map_with_path(resized, params)
  return params, [line for line in lines if line]


def positions(embedding, model):
  """Position embeddings (1, N, D) for the model's grid, and what was done."""
  tokens = int(isinstance(model, VisionTransformer))  # the class token's own
  side = math.isqrt(embedding.shape[1] - tokens)
  if side == model.side or side**2 + tokens != embedding.shape[1]:
    return embedding, ""
  of_patches = patches.resize_position_embedding(
    embedding[:, tokens:], (side, side), (model.side, model.side)
  )
  line = (
    f"position embeddings are resized from {side} x {side} patches to"
    f" {model.side} x {model.side}"
  )
  return np.concatenate([embedding[:, :tokens], of_patches], 1), line


def table(biases, stage, model):
  """Biases (..., (2 · w - 1)², heads) for the stage's window, and the same."""
  window = min(model.window_size, model.side // 2**stage)
  old = math.isqrt(biases.shape[-2])
  new = 2 * window - 1
  if old == new or old**2 != biases.shape[-2] or old % 2 == 0:
    return biases, ""
  matrix = patches.cubic_resize_matrix(old, new, 0)
  square = biases.reshape(*biases.shape[:-2], old, old, -1)
  square = np.einsum("yh,xw,...hwd->...yxd", matrix, matrix, square)
  line = (
    f"relative positions of stage {stage} are resized from windows of"
    f" {(old + 1) // 2} to {window}"
  )
  return square.reshape(*biases.shape[:-2], new**2, -1), line
