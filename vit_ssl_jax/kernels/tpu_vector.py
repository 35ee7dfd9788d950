"""Attention of short sequences on a TPU's vector unit, as a Pallas kernel.

A view's scores are small, 65 x 65 or 17 x 17 by head, and would fill a part of
the TPU's tiles of 8 x 128 alone. Here the 128 lanes are 128 views, whose
attention the vector unit computes side by side, without padding. Scores stay
in the chip's registers; what is kept for the backward pass is q, k and v.

Arrays within: (W, N, H, d, B) for windows, tokens, heads, width of a head, and
views, which is the order that XLA chooses for activations with many views. In
the kernel (N, H, d, L) is "by token" and (H, d, N, L) is "by channel", L = 128.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
SUBLANES = 8
REGISTERS = 46  # of 64, for the scores of the queries that run together
HIDDEN = -1e30  # the score of a token that is padding
VMEM = 60 * 2**20  # bytes


def supports(arrays, shared, scale):
  """Enough views for the lanes, and sequences that fit into the chip's memory.

  A batch that leaves most of the 128 lanes empty is faster in XLA's form.
  """
  q, k, _ = arrays
  heads = 1 if shared[1] is None else q.shape[-2]
  small = fits(q.shape[-3], k.shape[-3], heads, q.shape[-1])
  return small and q.ndim <= 5 and len(q) >= LANES // 4


def attention(q, k, v, bias, mixing, *, scale):
  """`kernels.attention`; q has at most one axis between batch and tokens."""
  views = tuple(by_lanes(x, x.ndim - 3) for x in (q, k, v))
  out = attend(scale, views, prepare(bias), stack(mixing))[..., : len(q)]
  return jnp.moveaxis(out, -1, 0).reshape(q.shape)


def by_lanes(x, tokens):
  """(B, [W,] N, H, d) -> (W, N, H, d, B), padded to whole lanes with zeros."""
  x = jnp.moveaxis(x, 0, -1)
  x = x[None] if tokens == 1 else x
  pad = [(0, 0)] * (x.ndim - 1)
  return jnp.pad(x, [*pad, (0, -x.shape[-1] % LANES)])


def prepare(bias):
  """(1, [W,] H, N, M) -> (W, H, N, Mp, L), the padding hidden."""
  if bias is None:
    return None
  *windows, H, N, M = bias.shape[1:]
  bias = bias.reshape(*windows or (1,), H, N, M)
  pad = ((0, 0), (0, 0), (0, 0), (0, -M % SUBLANES))
  bias = jnp.pad(bias, pad, constant_values=HIDDEN)[..., None]
  return jnp.broadcast_to(bias, (*bias.shape[:-1], LANES))


def stack(mixing):
  """Both kernels (H, H) and the second bias (H,), one below the other.

  The softmax does not change with the first bias.
  """
  if mixing is None:
    return None
  (before, _), (after, shift) = mixing
  parts = before, after, shift[None]
  return jnp.concatenate([x.astype(jnp.float32) for x in parts])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(scale, qkv, bias, mixing):
  """q, k and v (W, N or M, H, d, B) -> (W, N, H, d, B)."""
  return call(forward_kernel, scale, qkv, bias, mixing)[0]


def attend_forward(scale, *arrays):
  return attend(scale, *arrays), arrays


def attend_backward(scale, residuals, g):
  qkv, bias, mixing = residuals
  dq, dk, dv, *rest = call(backward_kernel, scale, qkv, bias, mixing, g)
  dbias = dmixing = None
  if bias is not None:
    # The caller's broadcast over lanes sums them up.
    dbias = rest.pop(0)
    summed = [i for i in (0, 1) if bias.shape[i] == 1]
    dbias = jnp.sum(dbias, summed, keepdims=True)
  if mixing is not None:
    dmixing = jnp.sum(rest.pop(0), (-2, -1))
  return (dq, dk, dv), dbias, dmixing


attend.defvjp(attend_forward, attend_backward)


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(kernel, scale, qkv, bias, mixing, g=None):
  """Runs a kernel over windows, heads and blocks of 128 views.

  Where heads are mixed, one block has all of them. A model's blocks have equal
  shapes: JAX traces and lowers the kernel once for all of them.
  """
  (W, N, H, d, B), M = qkv[0].shape, qkv[1].shape[1]
  Mp = M + -M % SUBLANES
  heads = 1 if mixing is None else H
  f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

  together = queries(heads, Mp)
  # All heads of CaiT fit into the chip's memory once.
  buffers = pl.Buffered(1 if heads > 1 and g is not None else 2)

  def tokens(x):
    return pl.BlockSpec(
      (1, x.shape[1], heads, d, LANES),
      lambda w, h, b: (w, 0, h, 0, b),
      pipeline_mode=buffers,
    )

  def scores(windows, of_heads):
    return pl.BlockSpec(
      (1, min(heads, of_heads), N, Mp, LANES),
      lambda w, h, b: (w % windows, h % of_heads, 0, 0, 0),
    )

  inputs = [(x, tokens(x)) for x in qkv]
  if bias is not None:
    inputs.append((bias, scores(*bias.shape[:2])))
  if mixing is not None:
    inputs.append((mixing, pl.BlockSpec(memory_space=pltpu.SMEM)))
  buffer = functools.partial(pltpu.VMEM, dtype=jnp.float32)
  some_rows = buffer((together, heads, d, LANES))
  all_rows = buffer((M, heads, d, LANES))
  by_channel = buffer((heads, d, Mp, LANES))
  some = buffer((heads, together, Mp, LANES))
  out = jax.ShapeDtypeStruct((W, N, H, d, B), qkv[2].dtype)
  outputs = [(out, tokens(out))]
  scratch = [some_rows, by_channel, all_rows, some]
  if g is not None:
    inputs.append((g, tokens(g)))
    outputs = [(jax.ShapeDtypeStruct(x.shape, x.dtype), tokens(x)) for x in qkv]
    if bias is not None:
      outputs.append((f32((W, H, N, Mp, LANES)), scores(W, H)))
    if mixing is not None:
      shape = (*mixing.shape, SUBLANES, LANES)
      outputs.append((f32(shape), pl.BlockSpec(shape, lambda *_: (0, 0, 0, 0))))
    scratch = [some_rows] * 2 + [all_rows] + [by_channel] * 4 + [some] * 2
  arrays, in_specs = zip(*inputs, strict=True)
  shapes, out_specs = zip(*outputs, strict=True)
  products = 2 if g is None else 5
  return pl.pallas_call(
    functools.partial(kernel, scale, bias is not None, mixing is not None),
    out_shape=shapes,
    name=f"tpu_vector_{kernel.__name__}",
    grid=(W, H // heads, B // LANES),
    in_specs=in_specs,
    out_specs=out_specs,
    scratch_shapes=scratch,
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * W * H * N * M * d * B,
      transcendentals=W * H * N * M * B,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes)),
    ),
  )(*arrays)


def fits(N, M, heads, d):
  """Whether the backward pass fits into the chip's memory."""
  rows = max(N, M) + SUBLANES
  scratch = 4 * 5 * rows * heads * d * LANES
  buffers = 4 * 7 * rows * heads * d * LANES * (1 if heads > 1 else 2)
  return scratch + buffers // 2 < VMEM


def queries(heads, Mp):
  """How many queries run together: their scores have to stay in registers."""
  return max(1, REGISTERS // (heads * Mp // SUBLANES))


def blocks(count, size, body):
  """Calls body(first, how many) for all of `count`, in blocks of `size`."""
  whole = count // size

  def step(i, _):
    body(i * size, size)
    return 0

  jax.lax.fori_loop(0, whole, step, 0)
  if count % size:
    body(whole * size, count % size)


def load_rows(rows, block, first, count, scale=1.0):
  """Copies some tokens of a block (1, N, heads, d, L) to rows, in float32."""
  rows[:count] = block[0, pl.ds(first, count)].astype(jnp.float32) * scale


def store_by_channel(ref, x):
  """Stores a block x (1, M, heads, d, L) into (heads, d, Mp, L), float32."""
  M, heads = x.shape[1:3]
  for start in range(0, M, SUBLANES):
    for h in range(heads):
      some = x[0, start : start + SUBLANES, h].astype(jnp.float32)
      pad = ((0, SUBLANES - len(some)), (0, 0), (0, 0))
      some = jnp.swapaxes(jnp.pad(some, pad), 0, 1)
      ref[h, :, start : start + SUBLANES] = some


def store_by_token(ref, x):
  """Stores x (heads, d, Mp, L) into a block (1, M, heads, d, L)."""
  M, heads = ref.shape[1:3]
  for start in range(0, M, SUBLANES):
    for h in range(heads):
      some = jnp.swapaxes(x[h, :, start : start + SUBLANES], 0, 1)
      count = min(SUBLANES, M - start)
      ref[0, start : start + count, h] = some[:count].astype(ref.dtype)


def products(rows, columns, count):
  """rows · columns over the channels: (count, Mp, L) by head.

  Args:
    rows: by token, (count or more, heads, d, L).
    columns: by channel, (heads, d, Mp, L).
    count: of the queries.
  """
  heads, d = columns.shape[:2]
  return [
    sum(columns[h, c : c + 1] * rows[:count, h, c : c + 1] for c in range(d))
    for h in range(heads)
  ]


def combine(weights, rows, count):
  """Σ_m weights[m] rows[m]: (count, d, L) by head.

  Args:
    weights: (heads, count or more, Mp, L).
    rows: by token, (M, heads, d, L).
    count: of the queries.
  """
  M, heads = rows.shape[:2]
  return [
    sum(weights[h, :count, m : m + 1] * rows[m : m + 1, h] for m in range(M))
    for h in range(heads)
  ]


def add_outer(sums, rows, weights, count):
  """sums[h, c] += Σ_i weights[h, i] rows[i, h, c], by channel."""
  heads, d = sums.shape[:2]
  for h in range(heads):
    for c in range(d):
      products = weights[h, :count] * rows[:count, h, c : c + 1]
      sums[h, c] += jnp.sum(products, 0)


def mix(scores, mixing, first, shift=None):
  """Σ_h scores[h] mixing[first + h, g], for each g."""
  heads = range(len(scores))
  mixed = [sum(scores[h] * mixing[first + h, g] for h in heads) for g in heads]
  if shift is None:
    return mixed
  return [x + mixing[shift, g] for g, x in zip(heads, mixed, strict=True)]


def mix_back(scores, mixing, first):
  """The transpose of `mix`: Σ_g scores[g] mixing[first + h, g], for each h."""
  heads = range(len(scores))
  return [sum(scores[g] * mixing[first + h, g] for g in heads) for h in heads]


def softmax(scores, first, bias, M):
  """The exponentials of scores (count, Mp, L), and 1 / their sum, by head."""
  result = []
  for h, x in enumerate(scores):
    if bias is not None:
      x += bias[0, min(h, bias.shape[1] - 1), pl.ds(first, len(x))]
    elif x.shape[1] > M:
      keys = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
      x = jnp.where(keys < M, x, HIDDEN)
    e = jnp.exp(x - jnp.max(x, 1, keepdims=True))
    result.append((e, 1 / jnp.sum(e, 1, keepdims=True)))
  return result


def forward_kernel(scale, has_bias, has_mixing, q, k, v, *refs):
  """o = softmax(q kᵀ + bias) v, with heads mixed before and after."""
  refs = list(refs)
  bias = refs.pop(0) if has_bias else None
  mixing = refs.pop(0) if has_mixing else None
  out, rows, columns, values, weights = refs
  N, M, heads = q.shape[1], k.shape[1], q.shape[2]
  store_by_channel(columns, k)
  load_rows(values, v, 0, M)

  def body(first, count):
    load_rows(rows, q, first, count, scale)
    scores = products(rows, columns, count)
    if has_mixing:
      scores = mix(scores, mixing, 0)
    softmaxes = softmax(scores, first, bias, M)
    if has_mixing:
      p = mix([e * r for e, r in softmaxes], mixing, heads, 2 * heads)
      softmaxes = [(x, 1.0) for x in p]
    for h, (e, _) in enumerate(softmaxes):
      weights[h, :count] = e
    for h, x in enumerate(combine(weights, values, count)):
      out[0, pl.ds(first, count), h] = (x * softmaxes[h][1]).astype(out.dtype)

  blocks(N, len(rows), body)


def backward_kernel(scale, has_bias, has_mixing, q, k, v, *refs):
  """The gradients of q, k, v, bias and mixing."""
  refs = list(refs)
  bias = refs.pop(0) if has_bias else None
  mixing = refs.pop(0) if has_mixing else None
  g = refs.pop(0)
  dq, dk, dv, *refs = refs
  dbias = refs.pop(0) if has_bias else None
  dmixing = refs.pop(0) if has_mixing else None
  rows, grads, keys, k_columns, v_columns, dk_sums, dv_sums, *refs = refs
  dscores, weights = refs
  N, M, heads = q.shape[1], k.shape[1], q.shape[2]
  load_rows(keys, k, 0, M)
  store_by_channel(k_columns, k)
  store_by_channel(v_columns, v)
  dk_sums[...] = jnp.zeros_like(dk_sums)
  dv_sums[...] = jnp.zeros_like(dv_sums)
  at = [pl.program_id(i) for i in range(3)]
  if has_bias:

    @pl.when(at[2] == 0)
    def _():
      dbias[...] = jnp.zeros_like(dbias)

  if has_mixing:

    @pl.when(at[0] + at[1] + at[2] == 0)
    def _():
      dmixing[...] = jnp.zeros_like(dmixing)

  def add_mixing(row, x, y):
    """dmixing[row + h, g] += x[h] y[g], summed over tokens."""
    for h in range(len(x)):
      for j in range(heads):
        z = (x[h] * y[j]).reshape(-1, SUBLANES, LANES)
        dmixing[row + h, j] += jnp.sum(z, 0)

  def body(first, count):
    load_rows(rows, q, first, count, scale)
    load_rows(grads, g, first, count)
    scores = products(rows, k_columns, count)
    mixed = mix(scores, mixing, 0) if has_mixing else scores
    p = [e * r for e, r in softmax(mixed, first, bias, M)]
    for h in range(heads):
      weights[h, :count] = p[h]
      if has_mixing:
        dscores[h, :count] = scores[h]
    d = products(grads, v_columns, count)
    p = [weights[h, :count] for h in range(heads)]
    if has_mixing:
      add_mixing(heads, p, d)
      add_mixing(2 * heads, [jnp.ones_like(p[0])], d)
      for h, used in enumerate(mix(p, mixing, heads, 2 * heads)):
        weights[h, :count] = used
      d = mix_back(d, mixing, heads)
    ds = [
      x * (y - jnp.sum(x * y, 1, keepdims=True))
      for x, y in zip(p, d, strict=True)
    ]
    if has_bias:
      for h in range(heads):
        dbias[0, h, pl.ds(first, count)] += ds[h]
    if has_mixing:
      add_mixing(0, [dscores[h, :count] for h in range(heads)], ds)
      ds = mix_back(ds, mixing, 0)
    for h in range(heads):
      dscores[h, :count] = ds[h]
    for h, x in enumerate(combine(dscores, keys, count)):
      dq[0, pl.ds(first, count), h] = (x * scale).astype(dq.dtype)
    add_outer(dk_sums, rows, dscores, count)
    add_outer(dv_sums, grads, weights, count)

  blocks(N, len(rows), body)
  store_by_token(dk, dk_sums)
  store_by_token(dv, dv_sums)
