"""Fast forms of standard functions."""

import jax
import jax.numpy as jnp


def attention_weights(q, k, bias=None):
  """softmax(q kᵀ + bias), the attention's weights.

  Args:
    q: (..., N, heads, d), already scaled.
    k: (..., M, heads, d).
    bias: added to the scores (..., heads, N, M), with the same number of axes,
      some of which may be 1; or None.

  Returns:
    (..., heads, N, M) float32.
  """
  scores = jnp.einsum(
    "...nhd,...mhd->...hnm", q, k, preferred_element_type=jnp.float32
  )
  return jax.nn.softmax(scores if bias is None else scores + bias)


def attention(q, k, v, bias=None):
  """Softmax attention (Vaswani et al., 2017, section 3.2).

  Args:
    q, k, bias: as in `attention_weights`.
    v: (..., M, heads, d).

  Returns:
    (..., N, heads, d) in v's type; the softmax is computed in float32.
  """
  weights = attention_weights(q, k, bias).astype(v.dtype)
  return jnp.einsum("...hnm,...mhd->...nhd", weights, v)


def mix_heads(x, kernel):
  """(B, H, N, M) and (H, G) -> (B, G, N, M), float32: a map over the heads.

  Written as sums over the few heads: as a matrix product it would have x
  transposed, with the heads last, and back.
  """
  return sum(
    x[:, h, None].astype(jnp.float32) * weights[None, :, None, None]
    for h, weights in enumerate(kernel)
  )
