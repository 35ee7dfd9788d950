"""Layer norm with a residual sum on GPUs, as a Pallas kernel for Triton.

XLA reads rows twice in each direction, once for their statistics. Here a
program has whole rows in its registers, and reads and writes each array once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

LONGEST = 512  # numbers of a row; longer ones were not tried
ROWS = 16  # in registers together
LOOPS = 4  # over ROWS, of a program of the backward pass


def fits(D):
  """Whether the kernel takes rows of D numbers."""
  return D <= LONGEST


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def add_norm(x, y, mask, scale, bias, epsilon, dtype, interpret=False):
  """As `kernels.add_norm`, of rows.

  Args:
    x: (R, D) of a D that `fits`.
    y: (R, D) or None.
    mask: (B,), each for R / B rows of y, or None.
    scale, bias: (D,) float32.
    epsilon, dtype: as there.
    interpret: whether the kernel is interpreted, on any device.

  Returns:
    The sum, which is x itself without y, and its norm, both (R, D).
  """
  norm = jax.ShapeDtypeStruct(x.shape, dtype)
  outs = [norm] if y is None else [jax.ShapeDtypeStruct(x.shape, x.dtype), norm]
  given = [a for a in (x, scale, bias, y, mask) if a is not None]
  options = len(given) - 3, epsilon
  found = call(forward_kernel, options, ROWS, interpret, tuple(outs), *given)
  return (x, *found) if y is None else tuple(found)


def forward(x, y, mask, scale, bias, epsilon, dtype, interpret):
  outs = add_norm(x, y, mask, scale, bias, epsilon, dtype, interpret)
  empty = None if y is None else y[:0]  # for its type
  return outs, (outs[0], empty, mask, scale)


def backward(epsilon, dtype, interpret, kept, grads):
  del dtype
  x, y, mask, scale = kept
  R, D = x.shape
  rows = ROWS * LOOPS
  sums = jax.ShapeDtypeStruct((pl.cdiv(R, rows), D), jnp.float32)
  outs, given = [jax.ShapeDtypeStruct(x.shape, x.dtype)], [x, scale, *grads]
  if mask is not None:
    outs.append(jax.ShapeDtypeStruct(x.shape, y.dtype))
    given.append(mask)
  options, outs = (len(outs) - 1, epsilon), (*outs, sums, sums)
  *dx, dscale, dbias = call(
    backward_kernel, options, rows, interpret, outs, *given
  )
  dy = None if y is None else dx[-1].astype(y.dtype)
  return dx[0], dy, None, jnp.sum(dscale, 0), jnp.sum(dbias, 0)


add_norm.defvjp(forward, backward)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def call(kernel, options, rows, interpret, outs, *given):
  """Runs a kernel for each block of rows; traced once for equal shapes."""
  R, _ = given[0].shape
  return pl.pallas_call(
    functools.partial(kernel, *options),
    out_shape=outs,
    grid=(pl.cdiv(R, rows),),
    name=f"norm_{kernel.__name__}",
    interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
    cost_estimate=pl.CostEstimate(
      flops=0,  # of products
      transcendentals=R,
      bytes_accessed=sum(a.size * a.dtype.itemsize for a in (*given, *outs)),
    ),
  )(*given)


def block_of(ref, first):
  """ROWS rows of (R, D) from the first on, and which numbers exist.

  Blocks are as long as a power of 2, as Triton needs it.
  """
  R, D = ref.shape
  width = pl.next_power_of_2(D)
  columns = jnp.arange(width)[None] < D
  exists = columns & (first + jnp.arange(ROWS)[:, None] < R)
  # Indices that are no constants: the block is longer than the array.
  return ref.at[pl.ds(first, ROWS), pl.ds(first * 0, width)], exists


def load(ref, first):
  at, exists = block_of(ref, first)
  return triton.load(at, mask=exists, other=0.0).astype(jnp.float32)


def store(ref, value, first):
  at, exists = block_of(ref, first)
  triton.store(at, value.astype(ref.dtype), mask=exists)


def load_columns(ref, first):
  """All of (D,) as (1, width)."""
  (D,) = ref.shape
  width = pl.next_power_of_2(D)
  at = ref.at[pl.ds(first * 0, width)]
  return triton.load(at, mask=jnp.arange(width) < D, other=0.0)[None]


def load_mask(ref, first, R):
  """The mask of each row (ROWS, 1)."""
  rows = first + jnp.arange(ROWS)
  at = ref.at[rows // (R // ref.shape[0])]
  return triton.load(at, mask=rows < R, other=0.0)[:, None]


def normalise(x, D, epsilon):
  """Rows without their mean, of variance 1, and what made it 1."""
  x -= jnp.sum(x, 1, keepdims=True) / D
  x = jnp.where(jnp.arange(x.shape[1])[None] < D, x, 0.0)
  variance = jnp.sum(x * x, 1, keepdims=True) / D
  by = jax.lax.rsqrt(variance + epsilon)
  return x * by, by


def forward_kernel(added, epsilon, x_ref, scale, bias, *refs):
  """x + mask y, and its norm; `added` is how many of y and mask there are."""
  R, D = x_ref.shape
  first = pl.program_id(0) * ROWS
  x = load(x_ref, first)
  if added:
    y = load(refs[0], first)
    x += y * load_mask(refs[1], first, R) if added == 2 else y
    x = x.astype(x_ref.dtype)  # as it is kept
    store(refs[-2], x, first)
    x = x.astype(jnp.float32)
  x, _ = normalise(x, D, epsilon)
  x = x * load_columns(scale, first) + load_columns(bias, first)
  store(refs[-1], x, first)


def backward_kernel(masked, epsilon, x, scale, dsum, dnorm, *refs):
  """The gradients of x, and of y if masked, and sums of scale's and bias'."""
  R, D = x.shape
  *refs, dscale, dbias = refs
  dx, number = refs[masked], pl.program_id(0)

  def body(i, sums):
    first = (number * LOOPS + i) * ROWS
    normal, by = normalise(load(x, first), D, epsilon)
    g = load(dnorm, first)
    sums = sums[0] + jnp.sum(g * normal, 0), sums[1] + jnp.sum(g, 0)
    g *= load_columns(scale, first)
    mean = jnp.sum(g, 1, keepdims=True) / D
    along = jnp.sum(g * normal, 1, keepdims=True) / D
    grad = by * (g - mean - normal * along) + load(dsum, first)
    store(dx, grad, first)
    if masked:
      store(refs[2], grad * load_mask(refs[0], first, R), first)
    return sums

  zeros = jnp.zeros(pl.next_power_of_2(D), jnp.float32)
  sums = jax.lax.fori_loop(0, LOOPS, body, (zeros, zeros))
  exists = jnp.arange(len(zeros)) < D
  for ref, value in zip((dscale, dbias), sums, strict=True):
    at = ref.at[number, pl.ds(number * 0, len(zeros))]
    triton.store(at, value, mask=exists)
