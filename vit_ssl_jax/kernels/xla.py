"""Attention by XLA alone: the reference of every kernel, and CPUs' form."""

import jax
import jax.numpy as jnp


def attention(q, k, v, bias=None, mixing=None, *, scale):
  """Attention differentiated by JAX; see `kernels.attention`."""
  before, after = mixing or (None, None)
  weights = attention_weights(q, k, bias, before, scale=scale).astype(v.dtype)
  if after is not None:
    weights = mix_heads(weights, *after).astype(v.dtype)
  return jnp.einsum("...hnm,...mhd->...nhd", weights, v)


def attention_weights(q, k, bias=None, before=None, *, scale):
  """The softmax, (..., H, N, M) float32, before heads are mixed again."""
  scores = jnp.einsum(
    "...nhd,...mhd->...hnm", q * scale, k, preferred_element_type=jnp.float32
  )
  if before is not None:
    scores = mix_heads(scores, *before)
  return jax.nn.softmax(scores if bias is None else scores + bias)


def mix_heads(x, kernel, bias):
  """A linear map over heads: (..., H, N, M) -> the same in float32."""
  y = jnp.einsum("...hnm,hg->...gnm", x.astype(jnp.float32), kernel)
  return y + bias.reshape(*[1] * (y.ndim - 3), -1, 1, 1)


def no_mixing(arrays, shared, scale):
  return shared[1] is None


def cpu_attention(q, k, v, bias, mixing, *, scale):
  """Attention with a derivative of its own, for CPUs.

  It keeps the exponentials instead of the softmax, and orders its products as
  XLA's CPU kernels want them: ViT's steps take 0.88 of the time on two cores,
  and 0.8 to 0.9 of the memory.
  """
  return attend(q * scale, k, v, bias)


@jax.custom_vjp
def attend(q, k, v, bias):
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
