"""Layers that the architectures share.

Parameters are float32. `dtype` is the type of the arithmetic; the statistics of
normalisation and the softmax are always float32.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_ssl_jax import kernels
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import locality

# Accelerators multiply float32 in fewer bits by default.
EXACT = jax.lax.Precision.HIGHEST

LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6)


def uniform_fan_in(fan_in):
  """PyTorch's default initialiser: uniform in ±1/√fan_in."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Dense(nn.Module):
  """`nn.Dense` with a normal initialiser, computed by `kernels.dense`."""

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def parameters(self, width):
    """The kernel (width, features) and the bias (features,) or None."""
    shape = width, self.features
    kernel = self.param("kernel", self.kernel_init, shape)
    if not self.use_bias:
      return kernel, None
    return kernel, self.param("bias", nn.initializers.zeros, shape[1:])

  def __call__(self, x):
    """(..., D) -> (..., features)."""
    return dense(x, *self.parameters(x.shape[-1]), self.dtype)


def dense(x, kernel, bias, dtype):
  """`kernels.dense` in a type of arithmetic."""
  return kernels.dense(*nn.dtypes.promote_dtype(x, kernel, bias, dtype=dtype))


class PatchEmbed(nn.Module):
  """Projects each patch of an image to a token."""

  patch_size: int
  features: int
  shifted: bool = False  # shifted patch tokenisation (Lee et al., 2021)
  norm: bool = False  # a layer norm of the tokens
  # Of the kernel, with zero biases; None is PyTorch's convolution's for both.
  init: nn.initializers.Initializer | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images):
    """Images (B, H, W, C) -> tokens (B, H/p, W/p, D)."""
    (H, W), p = images.shape[1:3], self.patch_size
    if H % p or W % p or not H or not W:
      raise UserError(
        f"images of {H} x {W} pixels cannot be cut into patches of"
        f" {p} x {p} (model.patch_size={p})"
      )
    if self.shifted:
      images = locality.with_shifted_copies(images, p // 2)
      images = locality.cut(images, p)
      images = LayerNorm(dtype=self.dtype, name="input_norm")(images)
      p = 1  # each patch is a pixel by now
    uniform = uniform_fan_in(p * p * images.shape[-1])
    x = nn.Conv(
      self.features,
      (p, p),
      strides=(p, p),
      padding="VALID",
      dtype=self.dtype,
      kernel_init=self.init or uniform,
      bias_init=nn.initializers.zeros if self.init else uniform,
      name="proj",
    )(images)
    return LayerNorm(dtype=self.dtype, name="norm")(x) if self.norm else x


class Attention(nn.Module):
  """Multi-head attention (Vaswani et al., 2017, section 3.2)."""

  num_heads: int
  local: bool = False  # locality self-attention (Lee et al., 2021)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, queries=None):
    """Tokens (B, N, D) -> (B, N, D).

    With queries (B, M, D), which are the first M of the tokens, -> (B, M, D).
    """
    q, k, v = self.project(x if queries is None else queries, x)
    bias, scale, mixing = None, None, self.mixing()
    if self.local:
      bias = self.mask(q.shape[1], k.shape[1])
      q, scale = locality.scale_queries(self, q), 1.0
    if self.is_mutable_collection("intermediates"):
      weights = kernels.attention_weights(
        q, k, bias, scale=scale, mixing=mixing
      )
      self.sow("intermediates", "attention", weights)
    x = kernels.attention(q, k, v, bias, scale=scale, mixing=mixing)
    return merge_heads(self, x)

  def project(self, queries, x):
    """(B, M, D), (B, N, D) -> q (B, M, H, d), k and v (B, N, H, d)."""
    return project_qkv(self, queries, x)

  def mixing(self):
    """Talking heads' parameters, for `kernels.attention`."""
    return None

  def mask(self, M, N):
    """(1, 1, M, N) added to the scores of locality self-attention."""
    return locality.diagonal_mask(N)[None, None, :M]


def project_qkv(module, queries, x):
  """q, k and v (..., N, H, d) by an attention module's one kernel, "qkv".

  Three products write three arrays; a slice of one product would be copied.
  """
  D = x.shape[-1]
  kernel, bias = Dense(3 * D, name="qkv").parameters(D)
  parts = zip(jnp.split(kernel, 3, 1), jnp.split(bias, 3), strict=True)
  return [
    split_heads(dense(y, *part, module.dtype), module.num_heads)
    for y, part in zip((queries, x, x), parts, strict=True)
  ]


def split_heads(x, num_heads):
  """(..., N, D) -> (..., N, H, d)."""
  return x.reshape(*x.shape[:-1], num_heads, -1)


def merge_heads(module, x):
  """(..., N, H, d) -> (..., N, D) by an attention module's "proj"."""
  x = x.reshape(*x.shape[:-2], -1)
  return Dense(x.shape[-1], dtype=module.dtype, name="proj")(x)


class Mlp(nn.Module):
  """Two linear layers with the exact GELU in between."""

  hidden_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(..., D) -> (..., D)."""
    h = Dense(self.hidden_dim, dtype=self.dtype, name="fc1")(x)
    return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(kernels.gelu(h))


class Block(nn.Module):
  """Pre-norm transformer block (Dosovitskiy et al., 2021, figure 1)."""

  attention: Callable[..., nn.Module]  # called with dtype and name
  mlp_ratio: float
  dtype: jnp.dtype = jnp.float32  # of the branches
  layer_scale: float = 0.0  # initial LayerScale (CaiT, section 2); 0: none

  @nn.compact
  def __call__(self, x, keep=None, queries=None):
    """Tokens (B, ..., D) -> (B, ..., D).

    Args:
      x: (B, ..., D).
      keep: (B, 2) drop path's factors of the two branches, or None.
      queries: (B, M, D), the first M tokens, if only they are wanted.
    """
    norm = LayerNorm(dtype=self.dtype, name="norm1")
    attention = self.attention(dtype=self.dtype, name="attn")
    if queries is None:
      y = attention(norm(x))
    else:
      x, y = queries, attention(norm(x), norm(queries))
    x = x + self.scale(y, 1, keep)
    y = LayerNorm(dtype=self.dtype, name="norm2")(x)
    y = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")(y)
    return x + self.scale(y, 2, keep)

  def scale(self, y, number, keep):
    """LayerScale and drop path of a branch."""
    if self.layer_scale:
      init = nn.initializers.constant(self.layer_scale)
      gamma = self.param(f"gamma_{number}", init, y.shape[-1:])
      y = y * gamma.astype(y.dtype).reshape(*[1] * (y.ndim - 1), -1)
    if keep is not None:
      keep = keep[:, number - 1].reshape(-1, *[1] * (y.ndim - 1))
      y = y * keep.astype(y.dtype)
    return y


def take(tokens, index):
  """Rows `index` (..., M) of tokens (..., N, D) -> (..., M, D).

  A product with one-hot rows: on some devices a gather's gradient adds up in an
  order that differs from run to run.
  """
  rows = jax.nn.one_hot(index, tokens.shape[-2], dtype=tokens.dtype)
  return jnp.matmul(rows, tokens, precision=EXACT)


def classifier(num_classes):
  """The last layer, from features to logits, in float32."""
  return nn.Dense(
    num_classes, kernel_init=nn.initializers.normal(0.02), precision=EXACT
  )
