"""Attention by cuDNN, for sequences that `gpu_attention` does not take."""

import jax
import jax.numpy as jnp


def supports(arrays, shared, scale):
  """Half precision, no bias, heads of 8 channels, more than one query.

  For a single query padding would double it, and copy its keys.
  """
  q = arrays[0]
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  fits = q.ndim == 4 and q.shape[-1] % 8 == 0 and q.shape[1] > 1
  return half and fits and shared == (None, None)


def attention(q, k, v, bias, mixing, *, scale, implementation="cudnn"):
  """`kernels.attention`; cuDNN's gradients need sequences of even length."""

  def even(x):
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

  def lengths(x):
    return jnp.full(len(x), x.shape[1], jnp.int32)

  out = jax.nn.dot_product_attention(
    even(q),
    even(k),
    even(v),
    scale=scale,
    query_seq_lengths=lengths(q),
    key_value_seq_lengths=lengths(k),
    implementation=implementation,
  )
  return out[:, : q.shape[1]]
