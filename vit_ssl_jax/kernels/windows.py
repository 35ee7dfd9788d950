"""Windows of tokens, also shifted ones (Liu et al., 2021, section 3.2).

On TPUs activations of many views lie as (H, W, C, B), and XLA rolls and cuts
them in up to seven passes. The kernel here moves blocks in one.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from vit_ssl_jax.kernels.dispatch import Kernel, dispatch

VIEWS = 512  # in a block
FEWEST = 32  # views for which the lanes are full enough


def to_windows(x, window, shift):
  """Cuts tokens (B, H, W, C) into windows (B, windows, window², C).

  They are padded with zeros at the right and the bottom, and rolled up and left
  by `shift` tokens.
  """
  H, W = x.shape[1:3]
  sizes = {"H": H, "W": W, "window": window, "shift": shift}
  return dispatch(TO_WINDOWS, cut, (x,), **sizes)


def from_windows(x, H, W, window, shift):
  """Joins windows (B, windows, window², C) into tokens (B, H, W, C)."""
  sizes = {"H": H, "W": W, "window": window, "shift": shift}
  return dispatch(FROM_WINDOWS, join, (x,), **sizes)


def cut(x, *, H, W, window, shift):
  """XLA's form of `to_windows`."""
  B, C = len(x), x.shape[-1]
  x = jnp.pad(x, ((0, 0), (0, -H % window), (0, -W % window), (0, 0)))
  Hp, Wp = x.shape[1:3]
  x = jnp.roll(x, (-shift, -shift), (1, 2)) if shift else x
  x = x.reshape(B, Hp // window, window, Wp // window, window, C)
  return x.swapaxes(2, 3).reshape(B, -1, window**2, C)


def join(x, *, H, W, window, shift):
  """XLA's form of `from_windows`."""
  B, C = len(x), x.shape[-1]
  Hp, Wp = H + -H % window, W + -W % window
  x = x.reshape(B, Hp // window, Wp // window, window, window, C)
  x = x.swapaxes(2, 3).reshape(B, Hp, Wp, C)
  x = jnp.roll(x, (shift, shift), (1, 2)) if shift else x
  return x[:, :H, :W]


def supports(arrays, shared, *, H, W, window, shift):
  """More than one window, no padding, and enough views."""
  several = H % window == W % window == 0 and window**2 < H * W
  return several and len(arrays[0]) >= FEWEST


def cut_by_kernel(x, *, H, W, window, shift):
  y = move(True, window, shift, x)
  return y.reshape(len(x), -1, window**2, x.shape[-1])


def join_by_kernel(x, *, H, W, window, shift):
  shape = len(x), H // window, W // window, window, window, x.shape[-1]
  return move(False, window, shift, x.reshape(shape))


TO_WINDOWS = {"tpu": [Kernel("to_windows", supports, cut_by_kernel)]}
FROM_WINDOWS = {"tpu": [Kernel("from_windows", supports, join_by_kernel)]}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def move(cut, window, shift, x):
  """Tokens (B, H, W, C) to (B, rows, columns, window, window, C), or back."""
  return call(cut, window, shift, x)


move.defvjp(
  lambda *args: (move(*args), None),
  lambda cut, window, shift, _, g: (move(not cut, window, shift, g),),
)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def call(cut, window, shift, x):
  """Runs the kernel over blocks, for `move`; traced once for equal shapes."""
  x = jnp.moveaxis(x, 0, -1)
  *lengths, C, B = x.shape
  H, W = lengths if cut else (n * window for n in lengths[:2])
  unit = math.gcd(window, shift)  # a block's side: never cut by an edge
  rows, columns, by = H // unit, W // unit, shift // unit
  per = window // unit  # blocks a side of a window
  views = min(VIEWS, B)
  tokens = pl.BlockSpec(
    (unit, unit, C, views),
    lambda i, j, b: ((i + by) % rows, (j + by) % columns, 0, b),
  )
  windows = pl.BlockSpec(
    (None, None, unit, unit, C, views),
    lambda i, j, b: (i // per, j // per, i % per, j % per, 0, b),
  )
  shape = (H // window, W // window, window, window) if cut else (H, W)
  y = pl.pallas_call(
    move_kernel,
    out_shape=jax.ShapeDtypeStruct((*shape, C, B), x.dtype),
    grid=(rows, columns, pl.cdiv(B, views)),
    in_specs=[tokens if cut else windows],
    out_specs=windows if cut else tokens,
    name="windows_move_kernel",
    cost_estimate=pl.CostEstimate(
      flops=0, transcendentals=0, bytes_accessed=2 * x.size * x.dtype.itemsize
    ),
  )(x)
  return jnp.moveaxis(y, -1, 0)


def move_kernel(source, target):
  target[...] = source[...]
