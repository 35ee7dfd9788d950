"""Softmax attention, with a derivative of its own, and ViT's use of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import layers

# Added to a score that is not to count; finite, so that a token with nobody
# else to attend to gets a number.
MASKED = -1e9


@jax.custom_vjp
def attend(q, k, v, bias):
  """Softmax attention over (..., N, heads, d), queries already scaled.

  Its derivative equals what automatic differentiation gives, but keeps and
  reads less.

  Args:
    q: (..., N, heads, d).
    k, v: (..., M, heads, d).
    bias: added to the scores (..., heads, N, M), with the same number of axes,
      some of which may be 1; or None.

  Returns:
    (..., N, heads, d) in v's type; the softmax is computed in float32.
  """
  return attend_forward(q, k, v, bias)[0]


def swap(x):
  """(..., N, heads, d) -> (..., heads, N, d), and back."""
  return x.swapaxes(-3, -2)


def attention_weights(q, k, bias):
  """exp(score - max) (..., heads, N, M) and sums (..., heads, N, 1), float32.

  Arguments are (..., heads, N, d) and those of `attend`.
  """
  scores = jnp.einsum(
    "...nd,...md->...nm", q, k, preferred_element_type=jnp.float32
  )
  if bias is not None:
    scores += bias
  weights = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
  return weights, jnp.sum(weights, -1, keepdims=True)


def attention_map(q, k, bias):
  """The softmax itself, (..., heads, N, M) float32, to look at."""
  weights, total = attention_weights(swap(q), swap(k), bias)
  return weights / total


def attend_forward(q, k, v, bias):
  q, k, v = swap(q), swap(k), swap(v)
  weights, total = attention_weights(q, k, bias)
  weights = weights.astype(v.dtype)
  out = jnp.einsum(
    "...nm,...md->...nd", weights, v, preferred_element_type=jnp.float32
  )
  total = swap(total)
  out = (swap(out) / total).astype(v.dtype)
  return out, (q, k, v, bias, weights, total, out)


def attend_backward(kept, g):
  q, k, v, bias, weights, total, out = kept
  along = swap(
    jnp.sum((g * out / total).astype(jnp.float32), -1, keepdims=True)
  )
  g = swap((g / total).astype(v.dtype))
  # Products over rows, transposed afterwards, are what XLA has kernels for.
  dv = jnp.einsum("...dn,...nm->...dm", g.swapaxes(-2, -1), weights)
  dweights = jnp.einsum(
    "...nd,...md->...nm", g, v, preferred_element_type=jnp.float32
  )
  dscores = weights * (dweights - along).astype(v.dtype)
  dq = jnp.einsum("...nm,...md->...nd", dscores, k)
  dk = jnp.einsum("...dn,...nm->...dm", q.swapaxes(-2, -1), dscores)
  dbias = None
  if bias is not None:
    spread = [i for i, size in enumerate(bias.shape) if size == 1]
    dbias = jnp.sum(dscores.astype(jnp.float32), spread, keepdims=True)
  return swap(dq), swap(dk.swapaxes(-2, -1)), swap(dv.swapaxes(-2, -1)), dbias


attend.defvjp(attend_forward, attend_backward)


def attend_fused(q, k, v, implementation):
  """`attend` without a bias, by one kernel that keeps no weights.

  cuDNN's takes float16 and bfloat16 and head widths that 8 divides, up to 128
  (256 from compute capability 9.0 on), and JAX says so where it does not.

  Args:
    q: (B, N, heads, d), already scaled.
    k, v: (B, M, heads, d).
    implementation: "cudnn", or "xla" to compare with.
  """
  return jax.nn.dot_product_attention(
    q, k, v, scale=1.0, implementation=implementation
  )


def query_scale(module, width, learned, axes=4):
  """What queries are multiplied by: 1 / √d, or a number learned per head.

  The learned temperature is that of locality self-attention (Lee et al., 2021).
  To be called from a compact method of `module`.

  Args:
    module: the attention module, with num_heads and dtype.
    width: D, of all heads together.
    learned: whether it is learned.
    axes: how many axes the queries (..., N, heads, d) have.

  Returns:
    A number, or an array (..., 1, heads, 1).
  """
  scale = (width // module.num_heads) ** -0.5
  if not learned:
    return scale
  init = nn.initializers.constant(scale)
  scales = module.param("inverse_temperature", init, (module.num_heads,))
  shape = (1,) * (axes - 2) + (module.num_heads, 1)
  return scales.astype(module.dtype).reshape(shape)


def diagonal_mask(size):
  """(N, N), so that no token attends to itself (Lee et al., 2021)."""
  return MASKED * np.eye(size, dtype=np.float32)


def split(x, groups):
  """Cuts tokens (B, T, C) into one (B, V, N, C) for each of the groups.

  Args:
    x: the tokens of several views, one view after the other.
    groups: for each group the number V of its views and its tokens N a view.
  """
  ends = np.cumsum([V * N for V, N in groups])
  parts = jnp.split(x, ends[:-1], axis=1)
  return [
    part.reshape(len(x), V, N, -1)
    for part, (V, N) in zip(parts, groups, strict=True)
  ]


def join(parts):
  """The inverse of `split`."""
  parts = [part.reshape(len(part), -1, part.shape[-1]) for part in parts]
  return jnp.concatenate(parts, 1) if len(parts) > 1 else parts[0]


def firsts(groups):
  """(V,) where in (B, T, C), of all groups, the first token of a view is."""
  return np.cumsum([0] + [N for V, N in groups for _ in range(V)])[:-1]


def over_views(q, k, v, groups, num_heads, attend_in_view):
  """Lets tokens attend to those of their own view.

  Args:
    q: (B, T, D) queries of the tokens of `groups`, or (B, V, D) of one a view.
    k, v: (B, T, D).
    groups: as in `split`.
    num_heads: attention heads.
    attend_in_view: (q, k, v), each (B · V, N, heads, d) -> (B · V, N, heads, d)
      and what is to be seen of the attention, or None.

  Returns:
    As q; what is to be seen of the first group's attention.
  """

  def heads(x):
    return x.reshape(-1, x.shape[2], num_heads, x.shape[3] // num_heads)

  whole = q.shape[1] == k.shape[1]
  asking = groups if whole else [(V, 1) for V, _ in groups]
  outs, seen = [], []
  for parts in zip(
    split(q, asking), split(k, groups), split(v, groups), strict=True
  ):
    out, shown = attend_in_view(*map(heads, parts))
    outs.append(out.reshape(parts[0].shape))
    seen.append(shown)
  return join(outs), seen[0]


class Attention(nn.Module):
  """Multi-head self-attention (Vaswani et al., 2017, section 3.2).

  Attributes:
    num_heads: attention heads.
    groups: how the tokens are made up: (V, N) for V views of N tokens.
    local: locality self-attention (Lee et al., 2021).
    dtype: type of the arithmetic.
    fused: whether to use cuDNN's kernel on a GPU, unless it is local.
  """

  num_heads: int
  groups: tuple[tuple[int, int], ...]
  local: bool = False
  dtype: jnp.dtype = jnp.float32
  fused: bool = False

  @nn.compact
  def __call__(self, x, affine=None, return_attention=False, first_alone=False):
    """Tokens (B, T, D) attend to those of their own view.

    Args:
      x: (B, T, D).
      affine: as in `layers.Linear`.
      return_attention: whether to return the attention as well.
      first_alone: whether only the first token of each view attends.

    Returns:
      (B, T, D), or (B, V, D) of the first tokens; the first group's attention
      (B · V, heads, N, N), or None.
    """
    D = x.shape[-1]
    project = layers.Linear(3 * D, self.dtype, name="qkv")
    if first_alone:
      q = project(x[:, firsts(self.groups)], affine, slice(0, D))
      k, v = jnp.split(project(x, affine, slice(D, None)), 2, -1)
    else:
      q, k, v = jnp.split(project(x, affine), 3, -1)
    scale = query_scale(self, D, self.local)
    fused = self.fused and jax.default_backend() == "gpu" and not self.local

    def attend_in_view(q, k, v):
      q *= scale
      if fused and not return_attention:
        return attend_fused(q, k, v, "cudnn"), None
      bias = None
      if self.local:
        bias = diagonal_mask(k.shape[1])[None, None, : q.shape[1]]
      shown = attention_map(q, k, bias) if return_attention else None
      return attend(q, k, v, bias), shown

    out, shown = over_views(
      q, k, v, self.groups, self.num_heads, attend_in_view
    )
    return layers.Linear(D, self.dtype, name="proj")(out), shown
