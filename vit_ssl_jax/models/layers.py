"""Layers that the architectures share: linear maps, MLP, blocks, drop path.

Parameters are float32. `dtype` is the type that the layers compute in;
normalisation statistics and softmax stay in float32 whatever it is.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# The longest stack of blocks that is unrolled. That spares writing what the
# backward pass needs into one array, and reading it from there. On two CPU
# cores ViT's fine-tuning step took 0.89 of the CPU time for it, and compiling
# 1.4 times as long; compiling CaiT's, with 24 blocks, took 3.6 times as long.
UNROLLED = 12


def uniform_fan_in(fan_in):
  """PyTorch's default: uniform in ±1/√fan_in, for kernels and for biases."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


# The functions below have derivatives of their own. They equal what automatic
# differentiation gives, but keep less for the backward pass and walk over it
# fewer times, which is what a CPU's step waits for.


@jax.custom_vjp
def linear(x, kernel, bias):
  """(..., D) times (D, F) plus (F,), all of one type, to (..., F)."""
  return linear_forward(x, kernel, bias)[0]


def linear_forward(x, kernel, bias):
  rows = x.reshape(-1, x.shape[-1]) @ kernel + bias[None]
  return rows.reshape(*x.shape[:-1], -1), (x, kernel)


def linear_backward(kept, g):
  x, kernel = kept
  rows, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
  # Automatic differentiation has this product the other way round, for which
  # XLA writes a transposed copy of g.
  dkernel = jax.lax.dot_general(rows, g, (((0,), (0,)), ((), ())))
  return (g @ kernel.T).reshape(x.shape), dkernel, jnp.sum(g, 0)


linear.defvjp(linear_forward, linear_backward)


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
  """(..., D) float32 to mean 0 and variance 1 along the last axis."""
  return standardize_forward(x)[0]


def standardize_forward(x):
  centered = x - jnp.mean(x, -1, keepdims=True)
  variance = jnp.mean(centered * centered, -1, keepdims=True)
  scale = jax.lax.rsqrt(variance + 1e-6)
  y = centered * scale
  return y, (y, scale)


def standardize_backward(kept, g):
  y, scale = kept
  along = jnp.mean(g * y, -1, keepdims=True)
  return (scale * (g - jnp.mean(g, -1, keepdims=True) - y * along),)


standardize.defvjp(standardize_forward, standardize_backward)


class LayerNorm(nn.Module):
  """Layer normalisation (Ba et al., 2016) with PyTorch's epsilon of ViTs.

  Attributes:
    dtype: type of what it returns.
    apart: whether to leave scale and bias to the linear layer that follows.
  """

  dtype: jnp.dtype = jnp.float32
  apart: bool = False

  @nn.compact
  def __call__(self, x):
    """(..., D) -> (..., D) in `dtype`; if apart, that and (scale, bias)."""
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    y = standardize(x.astype(jnp.float32))
    if self.apart:
      return y.astype(self.dtype), (scale, bias)
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    y = y * scale.reshape(shape) + bias.reshape(shape)
    return y.astype(self.dtype)


class Linear(nn.Module):
  """A dense layer, initialised with std 0.02 and a bias of zero."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, affine=None, columns=slice(None)):
    """(..., D) -> (..., features) in `dtype`.

    Args:
      x: (..., D).
      affine: (scale (D,), bias (D,)) that x is still to be multiplied by and
        added to. Doing so to the kernel instead, which has fewer rows than x,
        spares passes over x, both forwards and backwards.
      columns: which of the features are wanted.
    """
    init = nn.initializers.normal(0.02)
    kernel = self.param("kernel", init, (x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    kernel, bias = kernel[:, columns], bias[columns]
    if affine is not None:
      scale, shift = affine
      # Not in place: parameters may be the caller's own NumPy arrays.
      bias = bias + jnp.einsum("d,df->f", shift, kernel, precision="highest")
      kernel = kernel * scale[:, None]
    given = (x, kernel, bias)
    return linear(*(each.astype(self.dtype) for each in given))


class Mlp(nn.Module):
  """Two linear layers with a GELU in between."""

  hidden_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, affine=None):
    """(..., D) -> (..., D); `affine` is as in `Linear`."""
    h = gelu(Linear(self.hidden_dim, self.dtype, name="fc1")(x, affine))
    return Linear(x.shape[-1], self.dtype, name="fc2")(h)


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


class Block(nn.Module):
  """Pre-norm transformer block; one step of a scan over the depth.

  Attributes:
    attention: makes the attention module, given its name.
    mlp_ratio: hidden width of the MLP over D.
    tokens: how many tokens each view has, in order; drop path takes out a
      branch for a whole view.
    layer_scale_init: what each channel of a branch is multiplied by at first
      (LayerScale, Touvron et al., 2021, section 2); 0 is no such factor.
    dtype: type of the arithmetic.
  """

  attention: Callable[..., nn.Module]
  mlp_ratio: float
  tokens: tuple[int, ...]
  layer_scale_init: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, masks, return_attention=False, first_alone=False):
    """One block.

    Args:
      x: (B, T, D), the tokens of all views.
      masks: (2, B, V) drop path of the two branches, or None.
      return_attention: whether to return the attention as well.
      first_alone: whether only the first token of each view is wanted.

    Returns:
      (B, T, D), or (B, V, D) of the first tokens; what the attention module
      returns beside its output, or None.
    """
    y, affine = LayerNorm(self.dtype, apart=True, name="norm1")(x)
    attend = self.attention(name="attn")
    if first_alone:
      y, attention = attend(y, affine, return_attention, first_alone)
      x = x[:, np.cumsum((0, *self.tokens))[:-1]]
    else:
      y, attention = attend(y, affine, return_attention)
    x = x + self.branch(y, masks, 0)
    y, affine = LayerNorm(self.dtype, apart=True, name="norm2")(x)
    hidden_dim = int(x.shape[-1] * self.mlp_ratio)
    y = Mlp(hidden_dim, self.dtype, name="mlp")(y, affine)
    return x + self.branch(y, masks, 1), attention

  def branch(self, y, masks, index):
    """A branch (B, T, D), scaled, and dropped for some views."""
    if self.layer_scale_init:
      y *= layer_scale(self, index, self.layer_scale_init, y)
    if masks is None:
      return y
    mask = masks[index]
    if y.shape[1] != mask.shape[1]:  # it is not one token of each view alone
      mask = mask[:, np.repeat(np.arange(len(self.tokens)), self.tokens)]
    return y * mask[..., None].astype(y.dtype)


def layer_scale(module, index, initial, like):
  """A block's factor of each channel, (1, 1, D), for one of its branches."""
  init = nn.initializers.constant(initial)
  gamma = module.param(f"gamma_{index + 1}", init, like.shape[-1:])
  return gamma.astype(like.dtype)[None, None]


def scan(block, length, sliced, remat):
  """Repeats a block over its depth, with parameters stacked along it.

  A stack of at most `UNROLLED` blocks is no loop in the program, unless the
  blocks are to be computed again, for which there has to be one.

  Args:
    block: a module class with `__call__(x, other, return_attention)`.
    length: the depth.
    sliced: whether each block gets its own slice of `other`, or all of it.
    remat: whether only what a block is given is kept for the backward pass,
      and the rest is computed again.

  Returns:
    A module class that takes the same, and returns the last x and what the
    blocks returned beside it, stacked.
  """
  if remat:
    # The loop itself keeps XLA from finding the work to be the same. Of one
    # turn XLA removes it and keeps what is in the block; to have that of Swin's
    # first stage, of one pair, computed again saved nothing.
    block = nn.remat(block, prevent_cse=False, static_argnums=(3,))
  return nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=(0 if sliced else nn.broadcast, nn.broadcast),
    length=length,
    unroll=length if length <= UNROLLED and not remat else 1,
  )
