"""Colour and filter operations on one image, float32 (H, W, 3) in [0, 1].

Each works on 256 levels, and rounds or truncates where Pillow does, which
torchvision and the paper's code run. Parameters may be traced.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax import kernels

# Pillow's luma (ITU-R 601) in 65536ths. The weighted sum of three levels stays
# below 2^24, so float32 computes it exactly.
LUMA = (19595.0, 38470.0, 7471.0)
BOXES = 3  # box blurs of Pillow's Gaussian
BLUR_RADIUS = (0.1, 2.0)  # pixels, at every size, as in the paper's code
# Orders of color_jitter's operations.
ORDERS = tuple(itertools.permutations(range(4)))


def to_levels(image):
  """Rounds values in [0, 1] to levels 0, 1, …, 255 (float32)."""
  return jnp.round(image * 255.0)


def to_image(levels):
  """Scales levels 0 to 255 to values in [0, 1]."""
  return levels / 255.0


def box_matrix(size, radius):
  """Matrix (size, size) of one of the three box blurs of Pillow's Gaussian."""
  variance = radius**2 / BOXES
  whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
  rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
  box = whole + rest / (6 * (variance - (whole + 1) ** 2))
  ends = jnp.arange(-1, size)[None, :] - jnp.arange(size)[:, None]
  # Of a box of width 2b + 1 around pixel i, this lies before pixel t's end.
  share = jnp.clip((ends + box + 1) / (2 * box + 1), 0, 1)
  share = share.at[:, 0].set(0).at[:, -1].set(1)
  return share[:, 1:] - share[:, :-1]


def gaussian_blur(image, radius):
  """`ImageFilter.GaussianBlur(radius)`; radius in pixels, 0 is identity."""
  levels = to_levels(image)
  for axis, product in ((1, "jw,hwc->hjc"), (0, "ih,hwc->iwc")):
    box = box_matrix(image.shape[axis], radius)
    for _ in range(BOXES):
      levels = jnp.einsum(product, box, levels, precision="highest")
      levels = jnp.floor(levels + 0.5)
  return to_image(levels)


def brightness(image, factor):
  """`ImageEnhance.Brightness`: factor 0 is black, 1 the image."""
  return to_image(_blend(0.0, to_levels(image), factor))


def contrast(image, factor):
  """`ImageEnhance.Contrast`: factor 0 is the mean grey, 1 the image."""
  levels = to_levels(image)
  return to_image(_blend(_mean_grey(_grey(levels)), levels, factor))


def saturation(image, factor):
  """`ImageEnhance.Color`: factor 0 is grey, 1 the image."""
  levels = to_levels(image)
  return to_image(_blend(_grey(levels), levels, factor))


def sharpness(image, factor):
  """`ImageEnhance.Sharpness`: factor 0 is smoothed, 1 the image."""
  levels = to_levels(image)
  rows = levels[:-2] + levels[1:-1] + levels[2:]
  around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
  inner = jnp.floor((around + 4 * levels[1:-1, 1:-1]) / 13 + 0.5)
  return to_image(_blend(levels.at[1:-1, 1:-1].set(inner), levels, factor))


def hue(image, shift):
  """torchvision's `adjust_hue` on Pillow images; shift in turns, ±0.5."""
  levels = to_levels(image)
  red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  # The hue in 6ths of a turn is `sixths / chroma`. Whole numbers until the
  # one division: the truncation is then the exact quotient's.
  sixths = jnp.where(
    red == value,
    green - blue,
    jnp.where(
      green == value, blue - red + 2 * chroma, red - green + 4 * chroma
    ),
  )
  sixths = jnp.where(sixths < 0, sixths + 6 * chroma, sixths)
  angle = jnp.floor(255 * sixths / jnp.maximum(6 * chroma, 1))
  ratio = jnp.floor(255 * chroma / jnp.maximum(value, 1)) / 255
  angle = angle + jnp.trunc(shift * 255)
  angle = (angle - 256 * jnp.floor(angle / 256)) * 6 / 255
  # Each channel falls from `value` by a trapezoid of the hue.
  drops = []
  for offset in (5, 3, 1):
    sector = angle + offset  # below 12: this is the cheap remainder by 6
    sector = jnp.where(sector >= 6, sector - 6, sector)
    drops.append(jnp.clip(jnp.minimum(sector, 4 - sector), 0, 1))
  drop = jnp.stack(drops, axis=-1)
  turned = value[..., None] * (1 - ratio[..., None] * drop)
  return to_image(jnp.floor(turned + 0.5))


def grayscale(image):
  """`convert("L")`: the luma in all three channels."""
  return to_image(jnp.broadcast_to(_grey(to_levels(image)), image.shape))


def solarize(image, threshold):
  """Inverts levels of at least `threshold` (0 to 256)."""
  levels = to_levels(image)
  return to_image(jnp.where(levels < threshold, levels, 255 - levels))


def posterize(image, bits):
  """Keeps the `bits` (1 to 8) highest bits of each level."""
  step = jnp.exp2(8.0 - bits)
  return to_image(jnp.floor(to_levels(image) / step) * step)


def invert(image):
  """Subtracts each level from 255."""
  return to_image(255 - to_levels(image))


def autocontrast(image):
  """Stretches each channel to the full range; a constant channel stays."""
  levels = to_levels(image)
  low = jnp.min(levels, axis=(0, 1), keepdims=True)
  high = jnp.max(levels, axis=(0, 1), keepdims=True)
  stretched = jnp.floor((levels - low) * 255 / jnp.maximum(high - low, 1))
  return to_image(jnp.where(high > low, stretched, levels))


def equalize(image):
  """`ImageOps.equalize`: flattens each channel's histogram."""
  levels = to_levels(image).astype(jnp.int32).reshape(-1, 3)
  histogram = kernels.histogram(levels)
  below = jnp.cumsum(histogram, axis=1) - histogram
  # Pillow's step leaves out the pixels of the highest level in use.
  highest = jnp.max(levels, axis=0)[:, None]
  in_use = jnp.arange(256)[None, :] < highest
  step = jnp.sum(histogram * in_use, axis=1, keepdims=True) // 255
  table = (step // 2 + below) // jnp.maximum(step, 1)
  table = jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256)[None])
  equalized = kernels.table_lookup(table, levels).reshape(image.shape)
  return to_image(equalized.astype(jnp.float32))


def color_jitter(key, image, probability, strengths):
  """torchvision's `ColorJitter`, with the given probability.

  Strengths are (brightness, contrast, saturation, hue); the four run in one of
  24 equally likely orders.
  """
  draws = jax.random.uniform(key, (6,))
  *factors, shift = np.array(strengths, np.float32)
  low = np.array([*np.maximum(0, 1 - np.array(factors)), -shift])
  high = np.array([*(1 + np.array(factors)), shift])
  amounts = low + draws[:4] * (high - low)
  order = jnp.array(ORDERS)[jnp.floor(draws[4] * 24).astype(jnp.int32)]
  operations = (brightness, contrast, saturation, hue)

  def turn(i, image):
    results = [
      operation(image, amount)
      for operation, amount in zip(operations, amounts, strict=True)
    ]
    return jnp.select([order[i] == n for n in range(4)], results)

  # A loop: unrolled turns compile and run several times as long on a CPU, and
  # so does `lax.switch` in place of the selection.
  jittered = jax.lax.fori_loop(0, 4, turn, image)
  return jnp.where(draws[5] < probability, jittered, image)


def random_grayscale(key, image, probability):
  """`grayscale` with the given probability."""
  apply = jax.random.bernoulli(key, probability)
  return jnp.where(apply, grayscale(image), image)


def random_blur(key, image, probability):
  """`gaussian_blur` with the given probability and a radius in BLUR_RADIUS."""
  apply, radius = jax.random.uniform(key, (2,))
  low, high = BLUR_RADIUS
  radius = low + radius * (high - low)
  return gaussian_blur(image, jnp.where(apply < probability, radius, 0.0))


def random_solarize(key, image, probability):
  """`solarize` with the given probability."""
  apply = jax.random.bernoulli(key, probability)
  return jnp.where(apply, solarize(image, 128), image)


def _blend(base, levels, factor):
  """`Image.blend`: from base to levels and beyond; Pillow truncates."""
  return jnp.floor(jnp.clip(base + factor * (levels - base), 0, 255))


def _grey(levels):
  """The luma level (H, W, 1) of an image in levels."""
  total = sum(LUMA[i] * levels[..., i : i + 1] for i in range(3))
  return jnp.floor((total + 32768) / 65536)


def _mean_grey(grey):
  # A dot product: XLA's reduction took 40 times as long on a CPU.
  grey = grey.reshape(-1)
  share = jnp.full_like(grey, 1 / grey.size)
  return jnp.floor(jnp.dot(grey, share, precision="highest") + 0.5)
