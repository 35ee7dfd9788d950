"""Attention of short sequences on a TPU's vector unit, as a Pallas kernel.

A view's scores, 65 x 65 or 17 x 17 by head, would fill a part of the TPU's
tiles of 8 x 128. Here the 128 lanes are 128 views, without padding. Scores stay
in registers; the backward pass keeps q, k and v.

Arrays are (W, N, H, d, B): windows, tokens, heads, channels of a head, views,
XLA's order for activations with many views. In the kernel (N, H, d, L) is "by
token" and (H, d, N, L) "by channel", L = 128.
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
  """Enough views for the 128 lanes, and short enough sequences."""
  q, k, _ = arrays
  N, heads, d = max(q.shape[-3], k.shape[-3]), q.shape[-2], q.shape[-1]
  # Five arrays of scratch, and seven blocks, once or twice.
  arrays = 5 + 7 if shared[1] is None else heads * (5 + 3.5)
  fits = 4 * arrays * (N + SUBLANES) * d * LANES < VMEM
  return fits and q.ndim <= 5 and len(q) >= LANES // 4


def attention(q, k, v, bias, mixing, *, scale):
  """`kernels.attention`; q has at most one axis between batch and tokens."""
  qkv = by_lanes(q), by_lanes(k), by_lanes(v)
  out = attend(scale, qkv, prepare(bias), stack(mixing))
  return jnp.moveaxis(out[..., : len(q)], -1, 0).reshape(q.shape)


def by_lanes(x):
  """(B, [W,] N, H, d) -> (W, N, H, d, B), padded to whole lanes with zeros."""
  x = jnp.moveaxis(x.reshape(len(x), -1, *x.shape[-3:]), 0, -1)
  return jnp.pad(x, [(0, 0)] * 4 + [(0, -x.shape[-1] % LANES)])


def prepare(bias):
  """(1, [W,] H, N, M) -> (W, H, N, Mp, L), the padding hidden."""
  if bias is None:
    return None
  H, N, M = bias.shape[-3:]
  pad = ((0, 0), (0, 0), (0, 0), (0, -M % SUBLANES))
  bias = jnp.pad(bias.reshape(-1, H, N, M), pad, constant_values=HIDDEN)
  return jnp.broadcast_to(bias[..., None], (*bias.shape, LANES))


def stack(mixing):
  """Both kernels and the second bias; the softmax ignores the first's."""
  if mixing is None:
    return None
  (before, _), (after, shift) = mixing
  return jnp.concatenate([before, after, shift[None]]).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(scale, qkv, bias, mixing):
  """q, k and v (W, N or M, H, d, B) -> (W, N, H, d, B)."""
  return call(forward_kernel, scale, qkv, bias, mixing, None)


def attend_backward(scale, residuals, g):
  bias = residuals[1]
  dqkv, dbias, dmixing = call(backward_kernel, scale, *residuals, g)
  if bias is not None:
    # The caller's broadcast over lanes sums them up.
    summed = [i for i in (0, 1) if bias.shape[i] == 1]
    dbias = jnp.sum(dbias, summed, keepdims=True)
  dmixing = jax.tree.map(lambda x: jnp.sum(x, (-2, -1)), dmixing)
  return dqkv, dbias, dmixing


attend.defvjp(lambda *args: (attend(*args), args[1:]), attend_backward)


def token_block(heads, mode, x):
  """The block of an array (W, N, H, d, B)."""
  block = 1, x.shape[1], heads, x.shape[3], LANES
  return pl.BlockSpec(
    block, lambda w, h, b: (w, 0, h, 0, b), pipeline_mode=mode
  )


def score_block(heads, x):
  """The block of an array (W or 1, H or 1, N, Mp, L)."""
  W, H = x.shape[:2]
  block = 1, min(heads, H), *x.shape[2:]
  return pl.BlockSpec(block, lambda w, h, b: (w % W, h % H, 0, 0, 0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def call(kernel, scale, qkv, bias, mixing, g):
  """Runs a kernel over windows, heads (all if mixed) and blocks of views."""
  (W, N, H, d, B), M = qkv[0].shape, qkv[1].shape[1]
  heads, Mp = 1 if mixing is None else H, M + -M % SUBLANES
  # All heads of CaiT fit into the chip's memory once.
  mode = pl.Buffered(1 if heads > 1 and g is not None else 2)
  tokens = functools.partial(token_block, heads, mode)
  scores = functools.partial(score_block, heads)
  each = jax.tree.map  # of arrays, not of None
  smem = each(lambda _: pl.BlockSpec(memory_space=pltpu.SMEM), mixing)
  in_specs = each(tokens, qkv), each(scores, bias), smem, each(tokens, g)
  f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  buffer = functools.partial(pltpu.VMEM, dtype=jnp.float32)
  together = max(1, REGISTERS // (heads * Mp // SUBLANES))  # queries
  some_rows, rows = (buffer((n, heads, d, LANES)) for n in (together, M))
  columns = buffer((heads, d, Mp, LANES))
  weights = buffer((heads, together, Mp, LANES))
  if g is None:
    outputs = jax.ShapeDtypeStruct(qkv[0].shape, qkv[2].dtype)
    out_specs = tokens(outputs)
    scratch = [some_rows, columns, rows, weights]
  else:
    dbias = each(lambda _: f32((W, H, N, Mp, LANES)), bias)
    dmixing = each(lambda x: f32((*x.shape, SUBLANES, LANES)), mixing)
    outputs = each(lambda x: f32(x.shape, dtype=x.dtype), qkv), dbias, dmixing
    whole = each(lambda x: pl.BlockSpec(x.shape, lambda *_: (0,) * 4), dmixing)
    out_specs = in_specs[0], each(scores, dbias), whole
    scratch = [some_rows] * 2 + [rows] + [columns] * 4 + [weights] * 2
  moved = jax.tree.leaves((qkv, bias, mixing, g, outputs))
  return pl.pallas_call(
    functools.partial(kernel, scale),
    out_shape=outputs,
    name=f"tpu_vector_{kernel.__name__}",
    grid=(W, H // heads, B // LANES),
    in_specs=in_specs,
    out_specs=out_specs,
    scratch_shapes=scratch,
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
    cost_estimate=pl.CostEstimate(
      flops=(4 if g is None else 10) * W * H * N * M * d * B,
      transcendentals=W * H * N * M * B,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
    ),
  )(qkv, bias, mixing, g)


def blocks(count, size, body):
  """Calls body(first, how many) for all of `count`, in blocks of `size`."""
  whole = count // size
  jax.lax.fori_loop(0, whole, lambda i, _: body(i * size, size), None)
  if count % size:
    body(whole * size, count % size)


def load_rows(rows, block, first, count, scale=1.0):
  """Copies some tokens of a block (1, N, heads, d, L), in float32."""
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
      some = some[: M - start].astype(ref.dtype)
      ref[0, start : start + len(some), h] = some


def products(rows, columns, count):
  """rows by token · columns by channel: `count` queries' (count, Mp, L)."""
  heads, d = columns.shape[:2]
  return [
    sum(columns[h, c : c + 1] * rows[:count, h, c : c + 1] for c in range(d))
    for h in range(heads)
  ]


def combine(weights, rows, count):
  """Σ_m weights[:, :count, m] rows[m], rows by token: (count, d, L) by head."""
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
      sums[h, c] += jnp.sum(weights[h, :count] * rows[:count, h, c : c + 1], 0)


def mix(scores, mixing, first, shift=None):
  """Σ_h scores[h] mixing[first + h, g] for each g, and mixing[shift, g]."""
  heads = range(len(scores))
  mixed = [sum(scores[h] * mixing[first + h, g] for h in heads) for g in heads]
  if shift is not None:
    mixed = [x + mixing[shift, g] for g, x in enumerate(mixed)]
  return mixed


def mix_back(scores, mixing, first):
  """The transpose of `mix`."""
  heads = range(len(scores))
  return [sum(scores[g] * mixing[first + h, g] for g in heads) for h in heads]


def softmax(scores, first, bias, M):
  """The softmax over M keys of scores (count, Mp, L) by head."""
  result = []
  for h, x in enumerate(scores):
    if bias is not None:
      x += bias[0, min(h, bias.shape[1] - 1), pl.ds(first, len(x))]
    elif x.shape[1] > M:
      keys = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
      x = jnp.where(keys < M, x, HIDDEN)
    e = jnp.exp(x - jnp.max(x, 1, keepdims=True))
    result.append(e * (1 / jnp.sum(e, 1, keepdims=True)))
  return result


def clear(ref):
  ref[...] = jnp.zeros_like(ref)


def add_mixing(dmixing, row, x, y):
  """dmixing[row + h, g] += x[h] y[g], summed over tokens."""
  for h, a in enumerate(x):
    for g, b in enumerate(y):
      dmixing[row + h, g] += jnp.sum((a * b).reshape(-1, SUBLANES, LANES), 0)


def forward_kernel(scale, qkv, bias, mixing, _, out, *scratch):
  """o = softmax(q kᵀ + bias) v, with heads mixed before and after."""
  (q, k, v), (rows, columns, values, weights) = qkv, scratch
  N, M, heads = q.shape[1], k.shape[1], q.shape[2]
  store_by_channel(columns, k)
  load_rows(values, v, 0, M)

  def body(first, count):
    load_rows(rows, q, first, count, scale)
    scores = products(rows, columns, count)
    if mixing is not None:
      scores = mix(scores, mixing, 0)
    p = softmax(scores, first, bias, M)
    if mixing is not None:
      p = mix(p, mixing, heads, 2 * heads)
    for h, x in enumerate(p):
      weights[h, :count] = x
    for h, x in enumerate(combine(weights, values, count)):
      out[0, pl.ds(first, count), h] = x.astype(out.dtype)

  blocks(N, len(rows), body)


def backward_kernel(scale, qkv, bias, mixing, g, dqkv, dbias, dmixing, *refs):
  """The gradients of q, k and v, of the bias and of the mixing."""
  (q, k, v), (dq, dk, dv) = qkv, dqkv
  rows, grads, keys, *columns, dscores, weights = refs
  k_columns, v_columns, dk_sums, dv_sums = columns
  N, M, heads = q.shape[1], k.shape[1], q.shape[2]
  load_rows(keys, k, 0, M)
  store_by_channel(k_columns, k)
  store_by_channel(v_columns, v)
  clear(dk_sums)
  clear(dv_sums)
  at = [pl.program_id(i) for i in range(3)]
  for sums, begins in (dbias, at[2] == 0), (dmixing, sum(at) == 0):
    if sums is not None:
      pl.when(begins)(functools.partial(clear, sums))

  def body(first, count):
    load_rows(rows, q, first, count, scale)
    load_rows(grads, g, first, count)
    scores = products(rows, k_columns, count)
    mixed = scores if mixing is None else mix(scores, mixing, 0)
    for h, x in enumerate(softmax(mixed, first, bias, M)):
      weights[h, :count] = x
      if mixing is not None:
        dscores[h, :count] = scores[h]
    d = products(grads, v_columns, count)
    p = [weights[h, :count] for h in range(heads)]
    if mixing is not None:
      add_mixing(dmixing, heads, [*p, jnp.ones_like(p[0])], d)
      for h, used in enumerate(mix(p, mixing, heads, 2 * heads)):
        weights[h, :count] = used
      d = mix_back(d, mixing, heads)
    sums = [jnp.sum(p[h] * d[h], 1, keepdims=True) for h in range(heads)]
    ds = [p[h] * (d[h] - sums[h]) for h in range(heads)]
    for h in range(heads if bias is not None else 0):
      dbias[0, h, pl.ds(first, count)] += ds[h]
    if mixing is not None:
      add_mixing(dmixing, 0, [dscores[h, :count] for h in range(heads)], ds)
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
