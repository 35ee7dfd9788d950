"""Heads that only training needs: the projection head and the offset head."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_ssl_jax import kernels
from vit_ssl_jax.models import layers


class ProjectionHead(nn.Module):
  """MLP, L2 normalisation and a weight-normed linear layer to K outputs.

  As in DINO (Caron et al., 2021, section 3.1 and appendix C), with the gain of
  the last layer fixed at 1. The normalisation and the last layer run in
  float32.
  """

  out_dim: int = 1024
  hidden_dim: int = 512
  bottleneck_dim: int = 256
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, features):
    """Features (..., D) -> outputs (..., out_dim), float32, each in [-1, 1]."""
    dense = functools.partial(layers.Dense, dtype=self.dtype)
    x = kernels.gelu(dense(self.hidden_dim, name="fc1")(features))
    x = kernels.gelu(dense(self.hidden_dim, name="fc2")(x))
    x = dense(self.bottleneck_dim, name="fc3")(x)
    x = normalize(x.astype(jnp.float32), axis=-1)
    prototypes, _ = layers.Dense(
      self.out_dim,
      use_bias=False,
      kernel_init=layers.uniform_fan_in(self.bottleneck_dim),
      name="last_layer",
    ).parameters(self.bottleneck_dim)
    return jnp.matmul(x, normalize(prototypes, axis=0), precision=layers.EXACT)


class OffsetHead(nn.Module):
  """Predicts the distance of two tokens, for dense relative localisation.

  An MLP with two hidden layers (Liu et al., 2021, arXiv 2106.03746); their
  width is that of the authors' code.
  """

  hidden_dim: int = 512

  @nn.compact
  def __call__(self, pairs):
    """Two concatenated tokens (..., 2 · D) -> (..., 2), rows and columns."""
    x = nn.relu(layers.Dense(self.hidden_dim, name="fc1")(pairs))
    x = nn.relu(layers.Dense(self.hidden_dim, name="fc2")(x))
    return layers.Dense(2, name="fc3")(x)


def normalize(x, axis):
  """x over its L2 norm along one axis; norms under 1e-12 count as 1e-12."""
  squares = jnp.sum(x * x, axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
