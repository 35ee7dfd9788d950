"""Layers that the architectures share: linear maps, attention, MLP, drop path.

Parameters are float32. `dtype` is the type that the layers compute in;
normalisation statistics and softmax stay in float32 whatever it is.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def uniform_fan_in(fan_in):
  """PyTorch's default: uniform in ±1/√fan_in, for kernels and for biases."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def linear(features, dtype, name=None):
  """A dense layer, initialised with std 0.02 and a bias of zero."""
  init = nn.initializers.normal(0.02)
  return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def layer_norm(dtype, name=None):
  return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


def gelu(x):
  """The exact GELU, x · Φ(x) (Hendrycks and Gimpel, 2016)."""
  return nn.gelu(x, approximate=False)


def drop_path(x, rate, key):
  """Drops a residual branch for whole images (Huang et al., 2016).

  Args:
    x: (B, ...) the branch's output.
    rate: probability of dropping, may be traced.
    key: PRNG key.

  Returns:
    (B, ...) zero where dropped and x / (1 - rate) elsewhere.
  """
  keep = 1.0 - rate
  kept = jax.random.bernoulli(key, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
  return x * (kept / keep).astype(x.dtype)


class Attention(nn.Module):
  """Multi-head self-attention (Vaswani et al., 2017, section 3.2)."""

  num_heads: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(B, N, D) -> (B, N, D) and the attention (B, heads, N, N) in float32."""
    B, N, D = x.shape
    qkv = linear(3 * D, self.dtype, "qkv")(x)
    q, k, v = jnp.moveaxis(qkv.reshape(B, N, 3, self.num_heads, -1), 2, 0)
    scale = (D // self.num_heads) ** -0.5
    scores = jnp.einsum(
      "bnhd,bmhd->bhnm", q * scale, k, preferred_element_type=jnp.float32
    )
    attention = jax.nn.softmax(scores)
    out = jnp.einsum("bhnm,bmhd->bnhd", attention.astype(v.dtype), v)
    return linear(D, self.dtype, "proj")(out.reshape(B, N, D)), attention


class Mlp(nn.Module):
  """Two linear layers with an exact (erf) GELU in between."""

  hidden_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(..., D) -> (..., D)."""
    h = linear(self.hidden_dim, self.dtype, "fc1")(x)
    return linear(x.shape[-1], self.dtype, "fc2")(gelu(h))


def patches(images, patch_size):
  """Cuts images (B, H, W, C) into (B, H/p · W/p, p·p·C), row by row."""
  B, H, W, C = images.shape
  p = patch_size
  x = images.reshape(B, H // p, p, W // p, p, C)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, p * p * C)


def cubic_resize_matrix(size, new_size):
  """The weights with which a row of positions is resized.

  They are those of PyTorch's bicubic interpolation (a = -0.75, half-pixel
  centres, borders repeated, no antialiasing) under the scale factor
  (new_size + 0.1) / size that the paper's models use.

  Args:
    size: length of the given row.
    new_size: length wanted.

  Returns:
    (new_size, size) float32 NumPy array.
  """
  a = -0.75
  position = (np.arange(new_size) + 0.5) * size / (new_size + 0.1) - 0.5
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


def resize_position_embedding(embedding, grid, new_grid):
  """Resizes position embeddings (1, h·w, D) from one grid (h, w) to another.

  "Dynamic position embeddings" of the paper, section 3.1. Returns
  (1, h'·w', D), unchanged where the grids are the same.
  """
  if grid == new_grid:
    return embedding
  rows = cubic_resize_matrix(grid[0], new_grid[0])
  columns = cubic_resize_matrix(grid[1], new_grid[1])
  D = embedding.shape[-1]
  return jnp.einsum(
    "yh,xw,hwd->yxd",
    rows,
    columns,
    embedding.reshape(*grid, D),
    precision=jax.lax.Precision.HIGHEST,
  ).reshape(1, -1, D)
