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

from vit_ssl_jax.models.vector_attention import HIDDEN, LANES, SUBLANES, VMEM

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


def self_attention(qkv, heads, scale=1.0):
  """As `kernels.self_attention`, of sequences that `fits` allows.

  Products round their operands to bfloat16 on a TPU.

  Args:
    qkv: (B, N, 3 · D).
    heads: how many.
    scale: a number above 0.

  Returns:
    (B, N, D).
  """
  return jnp.swapaxes(attend(jnp.swapaxes(qkv, 0, 1), heads, scale), 0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def attend(qkv, heads, scale):
  """(N, B, 3 · D) -> (N, B, D)."""
  return call(forward_kernel, heads, scale, qkv)


def attend_forward(qkv, heads, scale):
  return attend(qkv, heads, scale), qkv


def attend_backward(heads, scale, qkv, g):
  return (call(backward_kernel, heads, scale, qkv, g),)


attend.defvjp(attend_forward, attend_backward)


def fits(N, heads, D):
  """Whether the kernel takes N tokens of D channels, in the chip's memory."""
  d, slot, rows = D // heads, slot_of(N), rows_of(N)
  if N > LANES + REST or slot < SUBLANES or d % SUBLANES or LANES % d:
    return False
  tiles = pl.cdiv(3 * D, LANES) * 2 + pl.cdiv(D, LANES)
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
  N, B, width = arrays[0].shape
  D, views = width // 3, min(VIEWS, B)
  grid = pl.cdiv(B, views)
  out = D if kernel is forward_kernel else 3 * D
  widths = [x.shape[2] for x in arrays]
  number = 2 if kernel is forward_kernel else 5  # of products
  dtype = arrays[0].dtype

  def block(width):
    return pl.BlockSpec((N, views, width), lambda i: (0, i, 0))

  def scratch(width):
    rows = rows_of(N) * (views + 1)
    return pltpu.VMEM((pl.cdiv(width, LANES), rows, LANES), jnp.float32)

  return pl.pallas_call(
    functools.partial(kernel, tiles_of(N, heads, D), scale),
    out_shape=jax.ShapeDtypeStruct((N, B, out), dtype),
    # What the estimate of its time needs: how often its loops run.
    name=f"matrix_{N}_{kernel.__name__}_{grid}x1",
    grid=(grid,),
    in_specs=[block(width) for width in widths],
    out_specs=block(out),
    scratch_shapes=[scratch(width) for width in (*widths, out)],
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
    cost_estimate=pl.CostEstimate(
      flops=2 * number * B * N * N * D,
      transcendentals=B * heads * N * N,
      bytes_accessed=B * N * (sum(widths) + out) * dtype.itemsize,
    ),
  )(*arrays)


def forward_kernel(tiles, scale, qkv, out, given, found):
  """o = softmax(scale q kᵀ) v, a step for all views before the next step."""
  N, views, _ = out.shape
  read_block(qkv, given)
  arrays = cut(given, views, tiles, 3)
  scores = [products(heads_apart(q, t), k) for t, q, k, _ in arrays]
  softmaxes = [softmax(x, scale, N) for x in scores]
  o = [
    [combine(weights, v, t, factors)]
    for (t, _, _, v), (weights, factors) in zip(arrays, softmaxes, strict=True)
  ]
  join(found, views, o, N)
  write_block(out, found)


def backward_kernel(tiles, scale, qkv, g, out, given, grads, found):
  """The gradients of q, k and v."""
  N, views, _ = g.shape
  read_block(qkv, given)
  read_block(g, grads)
  begun, ended = [], []
  for (t, q, k, v), (_, do) in zip(
    cut(given, views, tiles, 3), cut(grads, views, tiles, 1), strict=True
  ):
    of_q, of_do = heads_apart(q, t), heads_apart(do, t)
    begun.append(
      (t, q, k, do, of_q, of_do, products(of_q, k), products(of_do, v))
    )
  for t, q, k, do, of_q, of_do, scores, dp in begun:
    p = [e * r for e, r in zip(*softmax(scores, scale, N), strict=True)]
    ds = [
      x * (y - jnp.sum(x * y, 0, keepdims=True))
      for x, y in zip(p, dp, strict=True)
    ]
    dq = combine(ds, k, t) * scale
    dk = spread(ds, of_q, q, t) * scale
    ended.append([dq, dk, spread(p, of_do, do, t)])
  join(found, views, ended, N)
  write_block(out, found)


def cut(ref, views, tiles, thirds):
  """[(tile, array (R, W) of each third)] of each view, tile by tile."""
  D, parts = tiles[-1].channels.stop, []
  for view in range(views):
    rows = pl.ds(view, ref.shape[1] // (views + 1), views + 1)
    x = jnp.concatenate([ref.at[i][rows, :] for i in range(len(ref))], 1)
    for t in tiles:
      each = [x[:, i * D : (i + 1) * D][:, t.channels] for i in range(thirds)]
      parts.append((t, *each))
  return parts


def join(ref, views, parts, N):
  """Stores what `cut` would give: [array (N or more, W) of each third]."""
  tiles = len(parts) // views
  for view in range(views):
    thirds = zip(*parts[view * tiles : (view + 1) * tiles], strict=True)
    x = jnp.concatenate([x[:N] for third in thirds for x in third], 1)
    for i, lanes, w in lane_tiles(x.shape[1]):
      ref.at[i][pl.ds(view, N, views + 1), :w] = x[:, lanes]


def heads_apart(x, tile):
  """Queries (R, W) as the matrices whose products with keys are scores.

  Returns:
    For each group (heads · slot, W): a row for each head and query, zero but
    for the head's channels; then for each query of the rest (W, W): a row for
    each channel, so that its scores come once for each channel of a head.
  """
  W = x.shape[1]
  head = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (W, W), 1), tile.d)
  row = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, (W, W), 0), tile.d)
  queries = x[: tile.slot]
  found = [
    jnp.concatenate([jnp.where(head[:1] == h, queries, 0.0) for h in group])
    for group in tile.groups
  ]
  return found + [jnp.where(head == row, x[n : n + 1], 0.0) for n in tile.rest]


def products(queries, k):
  """Keys (R, W) by queries with `heads_apart`: (R, heads · slot or W) each."""
  return [dot(k, x, ((1,), (1,))) for x in queries]


def softmax(scores, scale, N):
  """Exponentials of scale · scores, and 1 / their sums over N keys."""
  weights, factors = [], []
  for x in scores:
    keys = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    x = jnp.where(keys < N, x, HIDDEN)
    e = jnp.exp2((x - jnp.max(x, 0, keepdims=True)) * (scale * LOG2E))
    weights.append(e)
    factors.append(1 / jnp.sum(e, 0, keepdims=True))
  return weights, factors


def combine(weights, x, tile, factors=None):
  """factors[query] Σ_m weights[m, query] x[m]: (queries, W) of x (R, W)."""
  d, slot, count = tile.d, tile.slot, len(tile.groups)
  transposed, found = x.T, []
  for group, w in zip(tile.groups, weights[:count], strict=True):
    rows = [transposed[h * d : (h + 1) * d] for h in group]
    every = dot(jnp.concatenate(rows), w, ((1,), (0,)))
    # The blocks on the diagonal are of a head and its own scores.
    lane = jax.lax.broadcasted_iota(jnp.int32, (d, w.shape[1]), 1)
    y = every[:d]
    for i in range(1, len(group)):
      y = jnp.where(lane < i * slot, y, every[i * d : (i + 1) * d])
    found.append(y)
  found += [jnp.sum(w * x, 0, keepdims=True) for w in weights[count:]]
  if factors is not None:
    found = [y * r for y, r in zip(found, factors, strict=True)]
  y = jnp.concatenate(found[:count]).T
  slots = [y[i : i + slot] for i in range(0, len(y), slot)]
  return jnp.concatenate([jnp.concatenate(slots, 1), *found[count:]])


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


def read_block(block, ref):
  """Copies a block (N, views, width) to tiles (i, N · (views + 1), 128).

  Tokens are views + 1 rows apart, for a view's tokens then lie in different
  banks of the memory. Rows for tokens that are padding are zero.
  """
  N, views, width = block.shape
  padding = slice(N * (views + 1), ref.shape[1])
  if padding.start < padding.stop:
    ref[:, padding] = jnp.zeros_like(ref[:, padding])
  for n in range(N):
    for i, lanes, w in lane_tiles(width):
      x = block[n, :, lanes].astype(jnp.float32)
      ref.at[i][pl.ds(n * (views + 1), views), :w] = x


def write_block(block, ref):
  """Copies tiles, laid out as by `read_block`, to a block."""
  N, views, width = block.shape
  for n in range(N):
    for i, lanes, w in lane_tiles(width):
      x = ref.at[i][pl.ds(n * (views + 1), views), :w]
      block[n, :, lanes] = x.astype(block.dtype)


def lane_tiles(width):
  """(number, slice of lanes, how many) for each 128 lanes."""
  for i in range(pl.cdiv(width, LANES)):
    end = min((i + 1) * LANES, width)
    yield i, slice(i * LANES, end), end - i * LANES
