"""Windows of tokens, also shifted ones (Liu et al., 2021, section 3.2).

On TPUs activations of many views lie as (H, W, C, B), and XLA rolls and cuts
them in up to seven passes. The kernel here moves blocks in one.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from vit_ssl_jax.models import kernels

VIEWS = 512  # in a block


def to_windows(x, window, shift, fast=False):
  """Tokens (B, H, W, C) -> (B, windows, window², C).

  They are padded with zeros at the right and the bottom, and rolled up and left
  by `shift`.

  Args:
    x: tokens.
    window: tokens a side of a window.
    shift: by how many tokens windows are shifted.
    fast: whether the device's kernel is used where it applies.
  """
  B, H, W, C = x.shape
  if fast and kernel_applies(B, H, W, window):
    cut = functools.partial(move, True, window, shift)
    x = kernels.on_each_device(cut, (x,))
    return x.reshape(B, -1, window**2, C)
  Hp, Wp = in_windows(H, W, window)
  x = jnp.pad(x, ((0, 0), (0, Hp - H), (0, Wp - W), (0, 0)))
  x = jnp.roll(x, (-shift, -shift), (1, 2)) if shift else x
  x = x.reshape(B, Hp // window, window, Wp // window, window, C)
  return x.swapaxes(2, 3).reshape(B, -1, window**2, C)


def from_windows(x, H, W, window, shift, fast=False):
  """(B, windows, window², C) -> tokens (B, H, W, C); undoes `to_windows`."""
  B, _, _, C = x.shape
  Hp, Wp = in_windows(H, W, window)
  x = x.reshape(B, Hp // window, Wp // window, window, window, C)
  if fast and kernel_applies(B, H, W, window):
    join = functools.partial(move, False, window, shift)
    return kernels.on_each_device(join, (x,))
  x = x.swapaxes(2, 3).reshape(B, Hp, Wp, C)
  x = jnp.roll(x, (shift, shift), (1, 2)) if shift else x
  return x[:, :H, :W]


def in_windows(H, W, window):
  """The height and width of an image in whole windows."""
  return -(-H // window) * window, -(-W // window) * window


def kernel_applies(B, H, W, window):
  """Whether there is more than a window, no padding, and many views."""
  several = H % window == W % window == 0 and window**2 < H * W
  return several and kernels.many_on_tpu(B)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def move(cut, window, shift, x):
  """`to_windows` or, with cut=False, `from_windows`, by the kernel.

  Args:
    cut: which of the two.
    window, shift: of those.
    x: (B, H, W, C), or (B, rows, columns, window, window, C).

  Returns:
    The other of the two shapes.
  """
  return call(cut, window, shift, x)


move.defvjp(
  lambda *given: (move(*given), None),
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
  grid = (rows, columns, pl.cdiv(B, views))
  y = pl.pallas_call(
    move_kernel,
    out_shape=jax.ShapeDtypeStruct((*shape, C, B), x.dtype),
    grid=grid,
    in_specs=[tokens if cut else windows],
    out_specs=windows if cut else tokens,
    # What the estimate of its time needs: how often its loop runs.
    name=f"move_kernel_{math.prod(grid)}x0",
    cost_estimate=pl.CostEstimate(
      flops=0, transcendentals=0, bytes_accessed=2 * x.size * x.dtype.itemsize
    ),
  )(x)
  return jnp.moveaxis(y, -1, 0)


def move_kernel(source, target):
  target[...] = source[...]
