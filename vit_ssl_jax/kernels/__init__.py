"""Kernels: the one door to what is written for a platform.

Each function has a standard signature and XLA's form as its reference. Which
form a program uses is decided while it is traced: see `use` and `verify`.
`model.apply` outside of a run uses XLA's forms on accelerators.
"""

import jax
import jax.numpy as jnp

from vit_ssl_jax.kernels import (
  dispatch,
  gpu_attention,
  tpu_matrix,
  tpu_vector,
  xla,
)
from vit_ssl_jax.kernels.dispatch import Kernel, platform, use
from vit_ssl_jax.kernels.lookup import histogram, pixels, rolled, table_lookup
from vit_ssl_jax.kernels.windows import from_windows, to_windows

ATTENTION = {
  "cpu": [Kernel("cpu", xla.no_mixing, xla.cpu_attention)],
  "gpu": [Kernel("triton", gpu_attention.supports, gpu_attention.attention)],
  "tpu": [
    Kernel("tpu_matrix", tpu_matrix.supports, tpu_matrix.attention),
    Kernel("tpu_vector", tpu_vector.supports, tpu_vector.attention),
  ],
}


def attention(
  q, k, v, bias=None, *, scale=None, mixing=None, implementation=None
):
  """Softmax attention (Vaswani et al., 2017, section 3.2).

  The layout is that of `jax.nn.dot_product_attention`.

  Args:
    q: (..., N, H, d).
    k, v: (..., M, H, d).
    bias: added to the scores (..., H, N, M), with as many axes, some of which
      may be 1; or None.
    scale: factor of the scores before the bias; None is d**-0.5.
    mixing: talking heads (Shazeer et al., 2020): (kernel (H, H), bias (H,)) of
      a linear map over the heads of scores, and the same for the softmax.
    implementation: "xla" for XLA's form; None chooses.

  Returns:
    (..., N, H, d) in v's type; the softmax is float32.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  kernels = {} if implementation == "xla" else ATTENTION
  return dispatch.dispatch(
    kernels, xla.attention, (q, k, v), (bias, mixing), scale=scale
  )


def attention_weights(q, k, bias=None, *, scale=None, mixing=None):
  """The softmax of `attention`, (..., H, N, M) float32, by XLA."""
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  before = mixing[0] if mixing else None
  return xla.attention_weights(q, k, bias, before, scale=scale)


def dense(x, kernel, bias=None):
  """A dense layer: x (..., D), kernel (D, F), bias (F,) or None -> (..., F).

  On a CPU x is a matrix, for which alone XLA has fast kernels there: ViT's
  gradient takes 0.6 of the time on two cores.
  """
  if platform() == "cpu":
    y = x.reshape(-1, x.shape[-1]) @ kernel
    y = y.reshape(*x.shape[:-1], -1)
  else:
    y = x @ kernel
  return y if bias is None else add_bias(y, bias)


@jax.custom_vjp
def add_bias(x, bias):
  """x (..., F) + bias (F,)."""
  return x + bias.reshape(*[1] * (x.ndim - 1), -1)


add_bias.defvjp(
  lambda x, bias: (add_bias(x, bias), None), lambda _, g: (g, sum_tokens(g))
)


def sum_tokens(x):
  """Sums x (..., F) over all axes but the last."""
  axes = tuple(range(x.ndim - 1))
  if platform() != "tpu":
    return jnp.sum(x, axes)
  # The TPU's matrix unit sums over lanes in a tenth of the time. Eight equal
  # columns keep XLA from making a sum of it again.
  ones = jnp.ones((*x.shape[:-1], 8), x.dtype)
  ones = jax.lax.optimization_barrier(ones)
  precise = jax.lax.Precision.HIGHEST
  return jax.lax.dot_general(ones, x, ((axes, axes), ((), ())), precise)[0]


def gelu(x):
  """The exact GELU, by erf in float32 (Hendrycks and Gimpel, 2016, section 2).

  `jax.nn.gelu` has erfc, of which XLA makes branches that both run: an MLP of
  ViT with its gradients takes 0.92 of the time on a CPU.
  """
  y = x.astype(jnp.float32)
  return (y * (0.5 + 0.5 * jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


__all__ = [
  "attention",
  "attention_weights",
  "dense",
  "from_windows",
  "gelu",
  "histogram",
  "pixels",
  "platform",
  "rolled",
  "table_lookup",
  "to_windows",
  "use",
]
