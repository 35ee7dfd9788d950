"""Counts and lookups by index, in the form that the device is fast at.

A TPU gathers and scatters number by number: by its compiler's instructions
fine-tuning's augmentation took longer there than the rest of the step. There
each index is compared with all possible values. Both forms give the same bits.
"""

import functools

import jax
import jax.numpy as jnp

LEVELS, BASE = 256, 16
# Pixels of an image that are compared with each other. The time grows with
# their square, a gather's with their number: by estimates both take as long at
# 128 x 128.
MOST = 64**2


def with_tpu_form(tpu):
  """Decorates a function that has another form for TPUs."""

  def decorate(default):
    @functools.wraps(default)
    def function(*args):
      return jax.lax.platform_dependent(*args, tpu=tpu, default=default)

    return function

  return decorate


def compared_histogram(levels):
  high, low = one_hot_digits(levels)
  counts = jnp.einsum(
    "ncs,nct->cst", high, low, preferred_element_type=jnp.float32
  )
  return counts.reshape(-1, LEVELS).astype(jnp.int32)


@with_tpu_form(compared_histogram)
def histogram(levels):
  """Counts each channel's levels: (N, C) int32 below 256 -> (C, 256) int32."""
  # One histogram of C × 256 bins by scatter: on a CPU 15 to 20 times faster
  # than products of one-hot digits, and in hundreds than comparisons.
  channels = levels.shape[-1]
  bins = levels + LEVELS * jnp.arange(channels)[None, :]
  counts = jnp.zeros(LEVELS * channels, jnp.int32).at[bins.reshape(-1)].add(1)
  return counts.reshape(channels, LEVELS)


def one_hot_digits(levels):
  """Levels (N, C) -> both hexadecimal digits, one-hot (N, C, 16), exact."""
  return [
    jax.nn.one_hot(digit, BASE, dtype=jnp.bfloat16)
    for digit in (levels // BASE, levels % BASE)
  ]


def compared_table_lookup(table, levels):
  high, low = one_hot_digits(levels)
  table = table.reshape(-1, BASE, BASE).astype(jnp.bfloat16)
  lines = jnp.einsum("ncs,cst->nct", high, table)
  return jnp.sum(lines * low, axis=-1).astype(jnp.int32)


@with_tpu_form(compared_table_lookup)
def table_lookup(table, levels):
  """Looks levels (N, C) up in tables (C, 256), all int32 below 256."""
  return table[jnp.arange(len(table))[None, :], levels]


def pixels(levels, rows, columns):
  """Gathers pixels of an image (H, W, C), whole numbers from 0 to 255.

  By rows and columns (h, w) int32: (h, w, C) float32.
  """
  small = levels.shape[0] * levels.shape[1] <= MOST
  return (few_pixels if small else gathered)(levels, rows, columns)


def gathered(levels, rows, columns):
  return levels[rows, columns]


def compared_pixels(levels, rows, columns):
  height, width, channels = levels.shape
  place = rows * width + columns
  match = jnp.arange(height * width)[:, None] == place.reshape(1, -1)
  # Levels are exact in bfloat16, and each sum has one term.
  values = jnp.einsum(
    "qp,cq->cp",
    match.astype(jnp.bfloat16),
    levels.reshape(-1, channels).T.astype(jnp.bfloat16),
    preferred_element_type=jnp.float32,
  )
  return values.T.reshape(*rows.shape, channels)


few_pixels = with_tpu_form(compared_pixels)(gathered)


def selected_rolled(image, shifts):
  """By selections between whole images, twice as far apart each time."""
  width = image.shape[1]
  shifts = (shifts % width)[:, :, None]
  for bit in range((width - 1).bit_length()):
    moved = jnp.roll(image, -(2**bit), axis=1)
    image = jnp.where((shifts >> bit) & 1, moved, image)
  return image


@with_tpu_form(selected_rolled)
def rolled(image, shifts):
  """Rolls the rows of an image (H, W, C) to the left.

  By shifts (H, 1), or (1, 1) for all rows, int32: the result's [y, x] is
  image[y, (x + shifts[y]) mod W].
  """
  width = image.shape[1]
  columns = (jnp.arange(width)[None, :] + shifts) % width
  if len(columns) == 1:
    return image[:, columns[0]]
  return jnp.take_along_axis(image, columns[:, :, None], axis=1)
