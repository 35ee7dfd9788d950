"""Attention on a TPU's matrix unit, as a Pallas kernel.

Scores stay in the chip's memory. They are transposed, (keys, queries), and
those of several heads lie side by side in the 128 lanes: a head's scores are
products with queries whose other channels are zero, and the matrix unit has
multiplications with zeros to spare. Softmax then sums over rows, without a
shuffle of lanes.

Arrays are (N, B, D): tokens, views, channels. XLA's products read and write
this order at little cost.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_ssl_jax.kernels.tpu_vector import HIDDEN, LANES, SUBLANES, VMEM

VIEWS = 8  # in a block
REST = 2  # the most queries outside of slots
LOG2E = math.log2(math.e)


class Tile(NamedTuple):
  """Heads whose channels lie in the same 128 lanes."""

  first: int  # channel
  d: int  # channels of a head
  groups: list  # of heads by their numbers here, whose scores share lanes
  slot: int  # lanes for a head's scores
  rest: range  # queries that no slot has room for, such as the last of 65

  @property
  def channels(self):
    return slice(self.first, self.first + self.d * sum(map(len, self.groups)))


def supports(arrays, shared, scale):
  """bfloat16 without a bias, and shapes on which it pays.

  It takes as long for each view, while the vector unit's kernel takes as long
  for a few views as for 128: by the compiler's cycles that one is faster for
  many views of 17 tokens, and slower of 65.
  """
  q, k, _ = arrays
  if q.ndim != 4 or q.dtype != jnp.bfloat16 or shared != (None, None):
    return False
  B, N, H, d = q.shape
  pays = N > 32 or B < LANES // 2
  return pays and q.shape == k.shape and fits(N, H, H * d)


def attention(q, k, v, bias, mixing, *, scale):
  """`kernels.attention`; a TPU rounds the products' operands to bfloat16."""
  heads = q.shape[2]
  flat = (x.reshape(*x.shape[:2], -1).swapaxes(0, 1) for x in (q, k, v))
  return attend(*flat, heads, scale).swapaxes(0, 1).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend(q, k, v, heads, scale):
  """q, k and v (N, B, D) -> (N, B, D)."""
  return call(forward_kernel, heads, scale, q, k, v)[0]


attend.defvjp(
  lambda *args: (attend(*args), args[:3]),
  lambda *args: tuple(call(backward_kernel, *args[:2], *args[2], args[3])),
)


def fits(N, heads, D):
  """N tokens of D channels fit into the chip's memory."""
  d, slot, rows = D // heads, slot_of(N), rows_of(N)
  if N > LANES + REST or slot < SUBLANES or d % SUBLANES or LANES % d:
    return False
  tiles = 7 * pl.cdiv(D, LANES)  # of q, k, v, the output's gradient, and theirs
  copies = 4 * (VIEWS + 1) * rows * tiles * LANES
  blocks = 2 * 2 * VIEWS * N * tiles * LANES  # two of each, in bfloat16
  scores = 4 * VIEWS * heads * slot * (2 * rows + 2 * LANES)
  return copies + blocks + scores < VMEM


def slot_of(N):
  """Lanes for the scores of N queries: few queries may be left over."""
  slot = 2 ** (N.bit_length() - 1)
  return slot if N - slot <= REST else 2 * slot


def rows_of(N):
  """Rows for N tokens and for a slot's queries."""
  return max(N + -N % SUBLANES, slot_of(N))


def tiles_of(N, heads, D):
  """All heads, as a list of tiles."""
  d, slot, tiles = D // heads, slot_of(N), []
  for first in range(0, D, LANES):
    count = min(LANES, D - first) // d
    number = count // math.gcd(LANES // slot, count)
    # The heads that have a group's first slot follow each other, and so on.
    groups = [list(range(i, count, number)) for i in range(number)]
    tiles.append(Tile(first, d, groups, slot, range(slot, N)))
  return tiles


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def call(kernel, heads, scale, *arrays):
  """Runs a kernel over blocks of views; a model's blocks share its trace."""
  (N, B, D), dtype = arrays[0].shape, arrays[0].dtype
  views = min(VIEWS, B)
  outputs, products = (1, 2) if kernel is forward_kernel else (3, 5)
  block = pl.BlockSpec((N, views, D), lambda i: (0, i, 0))
  rows = rows_of(N) * (views + 1)
  scratch = pltpu.VMEM((pl.cdiv(D, LANES), rows, LANES), jnp.float32)
  return pl.pallas_call(
    functools.partial(kernel, tiles_of(N, heads, D), scale),
    out_shape=[jax.ShapeDtypeStruct((N, B, D), dtype)] * outputs,
    name=f"tpu_matrix_{kernel.__name__}",
    grid=(pl.cdiv(B, views),),
    in_specs=[block] * len(arrays),
    out_specs=[block] * outputs,
    scratch_shapes=[scratch] * (len(arrays) + outputs),
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * B * N * N * D,
      transcendentals=B * heads * N * N,
      bytes_accessed=(len(arrays) + outputs) * B * N * D * dtype.itemsize,
    ),
  )(*arrays)


def forward_kernel(tiles, scale, q, k, v, out, *scratch):
  """o = softmax(scale q kᵀ) v, a step for all views before the next step."""
  N = len(out)
  arrays = read(tiles, (q, k, v), scratch[:3])
  scores = [products(heads_apart(q, t), k) for t, q, k, _ in arrays]
  softmaxes = [softmax(x, scale, N) for x in scores]
  o = [
    [combine(weights, v, t, factors)]
    for (t, _, _, v), (weights, factors) in zip(arrays, softmaxes, strict=True)
  ]
  write([out], scratch[3:], o)


def backward_kernel(tiles, scale, q, k, v, g, dq, dk, dv, *scratch):
  """The gradients of q, k and v."""
  arrays = read(tiles, (q, k, v, g), scratch[:4])
  begun, ended = [], []
  for t, q, k, v, do in arrays:
    of_q, of_do = heads_apart(q, t), heads_apart(do, t)
    scores, dp = products(of_q, k), products(of_do, v)
    begun.append((t, q, k, do, of_q, of_do, scores, dp))
  for t, q, k, do, of_q, of_do, scores, dp in begun:
    softmaxes = softmax(scores, scale, len(g))
    p = [e * r for e, r in zip(*softmaxes, strict=True)]
    ds = [
      x * (y - jnp.sum(x * y, 0, keepdims=True))
      for x, y in zip(p, dp, strict=True)
    ]
    grad_q = combine(ds, k, t) * scale
    grad_k = spread(ds, of_q, q, t) * scale
    ended.append([grad_q, grad_k, spread(p, of_do, do, t)])
  write([dq, dk, dv], scratch[4:], ended)


def read(tiles, blocks, refs):
  """[(tile, array (R, W) of each block)] of each view, tile by tile.

  Blocks (N, views, width) are copied to refs (i, R · (views + 1), 128): tokens
  are views + 1 rows apart, for a view's tokens then lie in different banks of
  the memory. Rows for tokens that are padding are zero.
  """
  N, views, width = blocks[0].shape
  rows = refs[0].shape[1] // (views + 1)
  for block, ref in zip(blocks, refs, strict=True):
    if rows > N:
      padding = slice(N * (views + 1), ref.shape[1])
      ref[:, padding] = jnp.zeros_like(ref[:, padding])
    for n in range(N):
      for i, lanes, w in lane_tiles(width):
        x = block[n, :, lanes].astype(jnp.float32)
        ref.at[i][pl.ds(n * (views + 1), views), :w] = x
  parts = []
  for view in range(views):
    at = pl.ds(view, rows, views + 1)
    arrays = [
      jnp.concatenate([ref.at[i][at, :] for i in range(len(ref))], 1)
      for ref in refs
    ]
    parts += [(t, *(x[:, t.channels] for x in arrays)) for t in tiles]
  return parts


def write(blocks, refs, parts):
  """Stores, for each view and tile, an array (N or more, W) of each block."""
  N, views, width = blocks[0].shape
  tiles = len(parts) // views
  for view in range(views):
    per_ref = zip(*parts[view * tiles : (view + 1) * tiles], strict=True)
    for ref, arrays in zip(refs, per_ref, strict=True):
      x = jnp.concatenate([y[:N] for y in arrays], 1)
      for i, lanes, w in lane_tiles(width):
        ref.at[i][pl.ds(view, N, views + 1), :w] = x[:, lanes]
  for block, ref in zip(blocks, refs, strict=True):
    for n in range(N):
      for i, lanes, w in lane_tiles(width):
        x = ref.at[i][pl.ds(n * (views + 1), views), :w]
        block[n, :, lanes] = x.astype(block.dtype)


def heads_apart(x, tile):
  """Queries (R, W) as the matrices whose products with keys are scores.

  For each group (heads · slot, W): a row for each head and query, zero but for
  the head's channels. Then for each query of the rest (W, W): a row for each
  channel, so that its scores come once for each channel of a head.
  """
  W = x.shape[1]
  head = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (W, W), 1), tile.d)
  row = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (W, W), 0), tile.d)
  queries = x[: tile.slot]
  groups = [
    jnp.concatenate([jnp.where(head[:1] == h, queries, 0.0) for h in group])
    for group in tile.groups
  ]
  return groups + [jnp.where(head == row, x[n : n + 1], 0.0) for n in tile.rest]


def products(queries, k):
  """Keys (R, W) by `heads_apart`'s queries: (R, heads · slot or W) each."""
  return [dot(k, x, ((1,), (1,))) for x in queries]


def softmax(scores, scale, N):
  """Exponentials of scale · scores, and 1 / their sums over N keys."""
  weights = []
  for x in scores:
    keys = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    x = jnp.where(keys < N, x, HIDDEN)
    x -= jnp.max(x, 0, keepdims=True)
    weights.append(jnp.exp2(x * (scale * LOG2E)))
  return weights, [1 / jnp.sum(e, 0, keepdims=True) for e in weights]


def combine(weights, x, tile, factors=None):
  """factors[query] Σ_m weights[m, query] x[m]: (queries, W) of x (R, W)."""
  d, slot, count = tile.d, tile.slot, len(tile.groups)
  transposed, sums = x.T, []
  for group, w in zip(tile.groups, weights[:count], strict=True):
    rows = [transposed[h * d : (h + 1) * d] for h in group]
    every = dot(jnp.concatenate(rows), w, ((1,), (0,)))
    # The blocks on the diagonal are of a head and its own scores.
    lane = jax.lax.broadcasted_iota(jnp.int32, (d, w.shape[1]), 1)
    y = every[:d]
    for i in range(1, len(group)):
      y = jnp.where(lane < i * slot, y, every[i * d : (i + 1) * d])
    sums.append(y)
  sums += [jnp.sum(w * x, 0, keepdims=True) for w in weights[count:]]
  if factors is not None:
    sums = [y * r for y, r in zip(sums, factors, strict=True)]
  y = jnp.concatenate(sums[:count]).T
  slots = [y[i : i + slot] for i in range(0, len(y), slot)]
  return jnp.concatenate([jnp.concatenate(slots, 1), *sums[count:]])


def spread(weights, queries, x, tile):
  """Σ_query weights[m, query] x[query]: (R, W); queries: `heads_apart` of x."""
  count = len(tile.groups)
  y = dot(
    jnp.concatenate(weights[:count], 1),
    jnp.concatenate(queries[:count]),
    ((1,), (0,)),
  )
  for n, w in zip(tile.rest, weights[count:], strict=True):
    y += w * x[n : n + 1]
  return y


def dot(x, y, axes):
  """A product over these axes; a TPU rounds its operands to bfloat16."""
  default = jax.lax.Precision.DEFAULT
  return jax.lax.dot_general(x, y, (axes, ((), ())), default)


def lane_tiles(width):
  """(number, slice of lanes, how many) for each 128 lanes."""
  for i in range(pl.cdiv(width, LANES)):
    end = min((i + 1) * LANES, width)
    yield i, slice(i * LANES, end), end - i * LANES
