"""XLA's forms of attention: the reference for every kernel."""

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
