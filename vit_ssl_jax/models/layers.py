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


# The three functions below have derivatives of their own. They equal what
# automatic differentiation gives, but keep less for the backward pass and walk
# over it fewer times, which is what a CPU's step waits for.


@jax.custom_vjp
def gelu(x):
  """The exact GELU, x · Φ(x) (Hendrycks and Gimpel, 2016)."""
  return gelu_forward(x)[0]


def gelu_forward(x):
  cdf = 0.5 * jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)) + 0.5
  pdf = jnp.exp(-0.5 * x * x) * np.sqrt(0.5 / np.pi).astype(x.dtype)
  return x * cdf, cdf + x * pdf


gelu.defvjp(gelu_forward, lambda slope, g: (g * slope,))


@jax.custom_vjp
def standardize(x):
  """(..., D) to mean 0 and variance 1 along the last axis, in float32."""
  return standardize_forward(x)[0]


def standardize_forward(x):
  x = x.astype(jnp.float32)
  centered = x - jnp.mean(x, -1, keepdims=True)
  variance = jnp.mean(centered * centered, -1, keepdims=True)
  scale = jax.lax.rsqrt(variance + 1e-6)
  return centered * scale, (centered * scale, scale)


def standardize_backward(kept, g):
  y, scale = kept
  along = jnp.mean(g * y, -1, keepdims=True)
  return (scale * (g - jnp.mean(g, -1, keepdims=True) - y * along),)


standardize.defvjp(standardize_forward, standardize_backward)


@jax.custom_vjp
def attend(q, k, v):
  """Softmax attention over (B, heads, N, d), queries already scaled.

  Returns:
    (B, heads, N, d) in v's type; the softmax is computed in float32.
  """
  return attend_forward(q, k, v)[0]


def attention_weights(q, k):
  """exp(q·k - max) (B, heads, N, M) and its sums (B, heads, N, 1), float32."""
  scores = jnp.einsum(
    "bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32
  )
  weights = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
  return weights, jnp.sum(weights, -1, keepdims=True)


def attend_forward(q, k, v):
  weights, total = attention_weights(q, k)
  weights = weights.astype(v.dtype)
  out = jnp.einsum(
    "bhnm,bhmd->bhnd", weights, v, preferred_element_type=jnp.float32
  )
  out = (out / total).astype(v.dtype)
  return out, (q, k, v, weights, total, out)


def attend_backward(kept, g):
  q, k, v, weights, total, out = kept
  g = (g / total).astype(v.dtype)
  # Products over rows, transposed afterwards, are what XLA has kernels for.
  dv = jnp.einsum("bhdn,bhnm->bhdm", g.swapaxes(2, 3), weights).swapaxes(2, 3)
  along = jnp.sum((g * out).astype(jnp.float32), -1, keepdims=True)
  dweights = jnp.einsum(
    "bhnd,bhmd->bhnm", g, v, preferred_element_type=jnp.float32
  )
  dscores = weights * (dweights - along).astype(v.dtype)
  dq = jnp.einsum("bhnm,bhmd->bhnd", dscores, k)
  dk = jnp.einsum("bhdn,bhnm->bhdm", q.swapaxes(2, 3), dscores).swapaxes(2, 3)
  return dq, dk, dv


attend.defvjp(attend_forward, attend_backward)


class LayerNorm(nn.Module):
  """Layer normalisation (Ba et al., 2016) with PyTorch's epsilon of ViTs."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(..., D) -> (..., D) in `dtype`."""
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    y = standardize(x) * scale.reshape(shape) + bias.reshape(shape)
    return y.astype(self.dtype)


class Attention(nn.Module):
  """Multi-head self-attention (Vaswani et al., 2017, section 3.2)."""

  num_heads: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, groups, return_attention=False):
    """Tokens attend to those of their own view.

    Args:
      x: (B, T, D).
      groups: how the T tokens are made up: (V, N) for V views of N tokens.
      return_attention: whether to return the attention as well.

    Returns:
      (B, T, D); the first group's attention (B · V, heads, N, N), or None.
    """
    B, _, D = x.shape
    qkv = linear(3 * D, self.dtype, "qkv")(x)
    outs, attention, start = [], None, 0
    for V, N in groups:
      part = qkv[:, start : start + V * N]
      start += V * N
      part = part.reshape(B * V, N, 3, self.num_heads, -1)
      q, k, v = part.transpose(2, 0, 3, 1, 4)
      q *= (D // self.num_heads) ** -0.5
      if return_attention and attention is None:
        weights, total = attention_weights(q, k)
        attention = weights / total
      out = attend(q, k, v)
      outs.append(out.transpose(0, 2, 1, 3).reshape(B, V * N, D))
    out = jnp.concatenate(outs, 1) if len(outs) > 1 else outs[0]
    return linear(D, self.dtype, "proj")(out), attention


class Mlp(nn.Module):
  """Two linear layers with a GELU in between."""

  hidden_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(..., D) -> (..., D)."""
    h = gelu(linear(self.hidden_dim, self.dtype, "fc1")(x))
    return linear(x.shape[-1], self.dtype, "fc2")(h)


def drop_path_masks(key, rates, views):
  """Which residual branches to drop (stochastic depth, Huang et al., 2016).

  Args:
    key: PRNG key.
    rates: (depth,) the probability of dropping, by block.
    views: shape of the views that are dropped independently, such as (B, V).

  Returns:
    (depth, 2, *views) float32, for a block's two branches: 0 where dropped,
    1 / (1 - rate) elsewhere.
  """
  keep = 1 - np.asarray(rates, np.float32).reshape(-1, *[1] * (1 + len(views)))
  draws = jax.random.uniform(key, (len(rates), 2, *views))
  return jnp.where(draws < keep, 1 / keep, 0.0)


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
