"""Shifted patch tokenisation and locality self-attention (Lee et al., 2021).

"Vision Transformer for Small-Size Datasets", arXiv 2112.13492.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

# Mask value; finite, so that a token without any other token gets a number.
MASKED = -1e9


def with_shifted_copies(images, pixels):
  """Appends four diagonally shifted copies, padded with zeros, as channels.

  Args:
    images: (B, H, W, C).
    pixels: shift along both axes.

  Returns:
    (B, H, W, 5 · C): the images, then those shifted down and right, down and
    left, up and right, up and left.
  """
  _, H, W, _ = images.shape
  s = pixels
  padded = jnp.pad(images, ((0, 0), (s, s), (s, s), (0, 0)))
  moved = [
    padded[:, top : top + H, left : left + W]
    for top in (0, 2 * s)
    for left in (0, 2 * s)
  ]
  return jnp.concatenate([images, *moved], -1)


def cut(images, patch_size):
  """Images (B, H, W, C) -> the pixels of patches (B, H/p, W/p, p·p·C)."""
  B, H, W, C = images.shape
  p = patch_size
  x = images.reshape(B, H // p, p, W // p, p, C)
  return x.swapaxes(2, 3).reshape(B, H // p, W // p, p * p * C)


def scale_queries(module, q):
  """Multiplies queries (..., N, H, d) by a learned inverse temperature.

  An attention module calls it in its compact method, and gets the parameter,
  one number per head.
  """
  H, d = q.shape[-2:]
  init = nn.initializers.constant(d**-0.5)
  scale = module.param("inverse_temperature", init, (H,))
  return q * scale.astype(q.dtype).reshape(*[1] * (q.ndim - 2), H, 1)


def diagonal_mask(size):
  """(N, N) added to scores: no token attends to itself."""
  return MASKED * np.eye(size, dtype=np.float32)
