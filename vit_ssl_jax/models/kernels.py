"""Fast forms of standard functions, each beside its plain form.

`platform` decides between them, and shapes where a kernel has limits.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from vit_ssl_jax.models import (
  matrix_attention,
  triton_attention,
  triton_norm,
  vector_attention,
)


def platform():
  """ "cpu", "tpu" or "gpu": of the mesh in use, or else of this machine."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def on_cpu():
  """Whether programs are for a CPU."""
  return platform() == "cpu"


def dense(x, kernel, bias=None):
  """A dense layer: x (..., D), kernel (D, F), bias (F,) or None -> (..., F).

  On a CPU x is a matrix, for which alone XLA has fast kernels there: ViT's
  gradient takes 0.6 of the time on two cores. On a TPU the bias has a
  derivative of its own.
  """
  if on_cpu():
    y = x.reshape(-1, x.shape[-1]) @ kernel
    y = y.reshape(*x.shape[:-1], -1)
  else:
    y = x @ kernel
  return y if bias is None else add_bias(y, bias)


@jax.custom_vjp
def add_bias(x, bias):
  """x (..., F) + bias (F,)."""
  return x + bias.reshape(*[1] * (x.ndim - 1), -1)


def add_bias_backward(_, g):
  return g, sum_of_tokens(g)


add_bias.defvjp(lambda *given: (add_bias(*given), None), add_bias_backward)


def sum_of_tokens(x):
  """Sums x (..., F) over all axes but the last."""
  axes = tuple(range(x.ndim - 1))
  if platform() != "tpu":
    return jnp.sum(x, axes)
  # The TPU's matrix unit sums over lanes in a tenth of the time. Eight equal
  # columns keep XLA from making a sum of it again. For a GPU XLA would put the
  # products of all blocks into one, and copy all their operands for it.
  ones = jnp.ones((*x.shape[:-1], 8), x.dtype)
  ones = jax.lax.optimization_barrier(ones)
  precise = jax.lax.Precision.HIGHEST
  return jax.lax.dot_general(ones, x, ((axes, axes), ((), ())), precise)[0]


def gelu(x):
  """The exact GELU, by erf in float32 (Hendrycks and Gimpel, 2016, section 2).

  `jax.nn.gelu` has erfc, of which XLA makes branches that both run: an MLP of
  ViT with its gradients takes 0.92 of the time on a CPU; for a TPU v5e, ViT's
  fine-tuning step is estimated at 0.996 of its time and 0.83 of its memory.
  """
  y = x.astype(jnp.float32)
  return (y * (0.5 + 0.5 * jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


def add(x, y, mask=None):
  """x + y (B, ..., D), where mask (B,), if any, scales y (drop path)."""
  if mask is not None:
    y = y * mask.reshape(-1, *[1] * (y.ndim - 1)).astype(y.dtype)
  return x + y


def add_norm(
  x, y, mask, scale, bias, epsilon=1e-6, dtype=jnp.float32, fast=True
):
  """The sum of `add`, and its layer norm (Ba et al., 2016, equation 4).

  Args:
    x: (B, ..., D).
    y: the same, or None, which adds nothing.
    mask: (B,) of y, or None.
    scale, bias: (D,) float32.
    epsilon: added to the variance.
    dtype: of the norm; its arithmetic is float32.
    fast: whether the GPU's kernel is used where it applies.

  Returns:
    The sum, of x's type, and its norm, both (B, ..., D).
  """
  if fast and norm_applies(x, dtype):
    kernel = functools.partial(norm_of_rows, epsilon, dtype)
    return on_each_device(kernel, (x, y, mask), scale, bias)
  x = x if y is None else add(x, y, mask)
  norm = nn.LayerNorm(epsilon, dtype, parent=None)
  return x, norm.apply({"params": {"scale": scale, "bias": bias}}, x)


def norm_of_rows(epsilon, dtype, x, y, mask, scale, bias, interpret=False):
  """`add_norm` by the GPU's kernel, of one device's arrays."""
  rows = [None if a is None else a.reshape(-1, a.shape[-1]) for a in (x, y)]
  outs = triton_norm.add_norm(
    *rows, mask, scale, bias, epsilon, dtype, interpret
  )
  return [out.reshape(x.shape) for out in outs]


def attention(q, k, v, bias=None, scale=1.0, fast=True):
  """Softmax attention (Vaswani et al., 2017, section 3.2).

  On a CPU its derivative is our own, which keeps the exponentials instead of
  the softmax, and orders its products as XLA's CPU kernels want them: ViT's
  steps take 0.88 of the time on two cores, and 0.8 to 0.9 of the memory.

  Args:
    q: (..., N, heads, d).
    k, v: (..., M, heads, d).
    bias: added to the scores (..., heads, N, M), with the same number of axes,
      some of which may be 1; or None.
    scale: a number that the scores are multiplied by before.
    fast: whether the device's kernel is used where it applies.

  Returns:
    (..., N, heads, d) in v's type; the softmax is computed in float32.
  """
  if fast and on_cpu():
    return cpu_attention(q * scale, k, v, bias)
  if fast and vector_applies(q, k):
    kernel = functools.partial(vector_attention.attention, scale=scale)
    return on_each_device(kernel, (q, k, v), bias)
  if fast and bias is None and cudnn_applies(q):
    return cudnn_attention(q, k, v, scale)
  return plain_attention(q * scale, k, v, bias)


def self_attention(qkv, heads, bias=None, scale=1.0, fast=True, qkv_bias=None):
  """`attention` of queries, keys and values that are one array.

  Kernels read them where they lie, without a copy of each.

  Args:
    qkv: (..., N, 3 · D).
    heads: how many; each is D / heads wide.
    bias, scale, fast: of `attention`.
    qkv_bias: (3 · D,) that is still to be added to qkv, or None; the GPU's
      kernel wants one.

  Returns:
    (..., N, heads, D / heads).
  """
  if qkv_bias is not None:
    if fast and bias is None and triton_applies(qkv, heads):
      kernel = functools.partial(triton_attention.self_attention, scale=scale)
      qkv_bias = qkv_bias.reshape(3, heads, -1)
      return on_each_device(kernel, (in_heads(qkv, heads),), qkv_bias)
    qkv = add_bias(qkv, qkv_bias)
  if fast and bias is None and matrix_applies(qkv, heads):
    kernel = functools.partial(
      matrix_attention.self_attention, heads=heads, scale=scale
    )
    out = on_each_device(kernel, (qkv,))
    return out.reshape(*out.shape[:-1], heads, -1)
  q, k, v = split_heads(qkv, heads)
  if fast and vector_applies(q, k):
    kernel = functools.partial(vector_attention.self_attention, scale=scale)
    return on_each_device(kernel, (in_heads(qkv, heads),), bias)
  return attention(q, k, v, bias, scale, fast)


def in_heads(qkv, heads):
  """(..., N, 3 · D) -> (..., N, 3, heads, D / heads)."""
  return qkv.reshape(*qkv.shape[:-1], 3, heads, -1)


def split_heads(qkv, heads):
  """(..., N, 3 · D) -> queries, keys, values, each (..., N, heads, d)."""
  return [x.reshape(*x.shape[:-1], heads, -1) for x in jnp.split(qkv, 3, -1)]


def attention_weights(q, k, bias=None):
  """softmax(q kᵀ + bias), (..., heads, N, M) float32; as in `attention`."""
  scores = jnp.einsum(
    "...nhd,...mhd->...hnm", q, k, preferred_element_type=jnp.float32
  )
  return jax.nn.softmax(scores if bias is None else scores + bias)


def plain_attention(q, k, v, bias=None):
  """`attention`, differentiated by JAX."""
  weights = attention_weights(q, k, bias).astype(v.dtype)
  return jnp.einsum("...hnm,...mhd->...nhd", weights, v)


@jax.custom_vjp
def cpu_attention(q, k, v, bias=None):
  """`attention`, with a derivative of its own."""
  return attention_forward(q, k, v, bias)[0]


def attention_forward(q, k, v, bias):
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


def attention_backward(kept, g):
  q, k, v, bias, weights, total, out = kept
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


cpu_attention.defvjp(attention_forward, attention_backward)


def swap(x):
  """(..., N, heads, d) -> (..., heads, N, d), and back."""
  return x.swapaxes(-3, -2)


def talking_heads(qkv, heads, before, after, bias=None, scale=1.0, fast=True):
  """Attention whose heads are mixed twice (Shazeer et al., 2020).

  Args:
    qkv, heads, bias, scale, fast: as of `self_attention`; the bias is added to
      scores that are mixed.
    before: a kernel (heads, heads) and a bias (heads,), which mix the scores.
    after: the same, which mix the softmax.

  Returns:
    (..., N, heads, d) in qkv's type.
  """
  q, k, v = split_heads(qkv, heads)
  if fast and vector_applies(q, k, heads):
    kernel = functools.partial(vector_attention.self_attention, scale=scale)
    # The softmax does not change with before's bias.
    mixing = before[0], *after
    return on_each_device(kernel, (in_heads(qkv, heads),), bias, mixing)
  weights = talking_heads_weights(q * scale, k, before, bias)
  weights = mix_heads(weights.astype(v.dtype), *after).astype(v.dtype)
  return jnp.einsum("...hnm,...mhd->...nhd", weights, v)


def talking_heads_weights(q, k, before, bias=None):
  """The softmax in `talking_heads`, before it is mixed, float32."""
  scores = jnp.einsum(
    "...nhd,...mhd->...hnm", q, k, preferred_element_type=jnp.float32
  )
  scores = mix_heads(scores, *before)
  return jax.nn.softmax(scores if bias is None else scores + bias)


def mix_heads(x, kernel, bias):
  """(..., heads, N, M) -> the same in float32, with heads mixed."""
  y = jnp.einsum("...hnm,hg->...gnm", x.astype(jnp.float32), kernel)
  return y + bias.reshape(*[1] * (y.ndim - 3), -1, 1, 1)


def matrix_applies(qkv, heads):
  """Whether the kernel for a TPU's matrix unit can be used, and pays.

  It multiplies in bfloat16, and takes as long for each view. The kernel for
  the vector unit takes as long for a few views as for 128: by the compiler's
  cycles it is faster for many views of 17 tokens, and slower of 65.

  Args:
    qkv: of `self_attention`.
    heads: how many.
  """
  if platform() != "tpu" or qkv.ndim != 3 or qkv.dtype != jnp.bfloat16:
    return False
  views, N, D = len(qkv) // mesh_size(), qkv.shape[1], qkv.shape[2] // 3
  pays = N > 32 or 0 < views < vector_attention.LANES // 2
  return pays and divides(len(qkv)) and matrix_attention.fits(N, heads, D)


def vector_applies(q, k, heads=1):
  """Whether the kernel for a TPU's vector unit can be used.

  It needs the mesh where there are several devices, a batch that they divide,
  and sequences that fit into the chip's memory. A batch that leaves most of
  the 128 lanes empty is faster in the plain form.

  Args:
    q, k: of `attention`.
    heads: how many the kernel holds at a time.
  """
  fits = vector_attention.fits(q.shape[-3], k.shape[-3], heads, q.shape[-1])
  return fits and many_on_tpu(len(q))


def many_on_tpu(batch):
  """Whether views fill enough of a TPU's lanes, and devices divide them."""
  enough = batch // mesh_size() >= vector_attention.LANES // 4
  return platform() == "tpu" and divides(batch) and enough


def divides(batch):
  """Whether `on_each_device` can split a batch."""
  mesh = jax.sharding.get_abstract_mesh()
  known = jax.device_count() == 1 or not mesh.empty
  return known and batch % mesh_size() == 0


def mesh_size():
  """How many devices a program is for; without a mesh it is one."""
  return max(1, jax.sharding.get_abstract_mesh().size)


def triton_applies(qkv, heads):
  """Whether the GPU's kernel for attention can be used.

  Args:
    qkv: of `self_attention`.
    heads: how many.
  """
  if not half_on_gpu(qkv.dtype) or qkv.ndim != 3:
    return False
  B, N, width = qkv.shape
  return divides(B) and triton_attention.fits(N, width // (3 * heads))


def cudnn_applies(q):
  """Whether cuDNN's attention can be used, where no kernel of ours is.

  Not for a single query: padding would double it, and copy its keys.
  """
  fits = q.ndim == 4 and q.shape[-1] % 8 == 0 and q.shape[1] > 1
  return half_on_gpu(q.dtype) and fits


def norm_applies(x, dtype):
  """Whether the GPU's kernel for layer norms can be used.

  Args:
    x, dtype: of `add_norm`.
  """
  fits = triton_norm.fits(x.shape[-1])
  return half_on_gpu(dtype) and fits and divides(len(x))


def half_on_gpu(dtype):
  """Whether a type is of half precision, and programs are for a GPU."""
  return platform() == "gpu" and dtype in (jnp.bfloat16, jnp.float16)


def cudnn_attention(q, k, v, scale, implementation="cudnn"):
  """`attention` without a bias; cuDNN's gradients need even sequences."""

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


def on_each_device(function, arrays, *rest):
  """Calls function(*arrays, *rest), with the batch as the mesh splits it."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh_size() == 1:
    return function(*arrays, *rest)
  batch = P(mesh.axis_names)
  return jax.shard_map(
    function,
    in_specs=(batch,) * len(arrays) + (P(),) * len(rest),
    out_specs=batch,
    check_vma=False,
  )(*arrays, *rest)
