"""Crops, flips and affine maps of one image, float32 (H, W, 3) in [0, 1].

They agree with Pillow and torchvision on 8-bit images. Parameters may be
traced; sizes of outputs are static.
"""

import math

import jax
import jax.numpy as jnp

from vit_ssl_jax import kernels
from vit_ssl_jax.augment.color import to_image, to_levels

CROP_TRIES = 10
ASPECT = (3 / 4, 4 / 3)  # of a crop
ERASING_TRIES = 100
GREY = 128 / 255  # fills what an affine map uncovers, as AutoAugment has it


def resize_matrix(size, start, length, input_size):
  """Weights (size, input_size) of Pillow's bicubic resize along one axis.

  `length` pixels from `start` become `size`. The cubic has a = -0.5 and is
  stretched by the factor of reduction, if there is one (antialiasing).
  """
  start = jnp.asarray(start, jnp.float32)
  length = jnp.asarray(length, jnp.float32)
  scale = length / size
  stretch = jnp.maximum(scale, 1)
  centre = ((jnp.arange(size) + 0.5) * scale)[:, None]
  pixel = jnp.arange(input_size)[None, :] - start
  first = jnp.floor(centre - 2 * stretch + 0.5)
  last = jnp.floor(centre + 2 * stretch + 0.5)
  inside = pixel >= jnp.maximum(first, 0)
  inside &= pixel < jnp.minimum(last, length)
  x = jnp.abs(pixel + 0.5 - centre) / stretch
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  weight = jnp.where(x < 1, near, jnp.where(x < 2, far, 0)) * inside
  return weight / jnp.sum(weight, axis=1, keepdims=True)


def resized_crop(image, box, size):
  """Crops box = (top, left, height, width) and resizes to (size, size, 3)."""
  top, left, height, width = box
  rows = resize_matrix(size, top, height, image.shape[0])
  columns = resize_matrix(size, left, width, image.shape[1])
  levels = to_levels(image)
  levels = jnp.einsum("jw,hwc->hjc", columns, levels, precision="highest")
  levels = _round(levels)
  levels = jnp.einsum("ih,hjc->ijc", rows, levels, precision="highest")
  return to_image(_round(levels))


def random_resized_crop(key, image, size, scale):
  """torchvision's `RandomResizedCrop(size, scale, interpolation=BICUBIC)`."""
  box = random_crop_box(key, image.shape[0], image.shape[1], scale)
  return resized_crop(image, box, size)


def random_crop_box(key, height, width, scale):
  """torchvision's `RandomResizedCrop.get_params`: (top, left, height, width).

  Whole numbers as float32: the first of ten tries that fits, else the largest
  central box within ASPECT.
  """
  draws = jax.random.uniform(key, (CROP_TRIES + 1, 2))
  shares, logs = draws[1:].T
  area = height * width * (scale[0] + shares * (scale[1] - scale[0]))
  low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
  aspect = jnp.exp(low + logs * (high - low))
  heights = jnp.round(jnp.sqrt(area / aspect))
  widths = jnp.round(jnp.sqrt(area * aspect))
  fits = (heights >= 1) & (heights <= height)
  fits &= (widths >= 1) & (widths <= width)
  box = _first_fit(draws[0], (heights, widths), fits, (height, width))
  whole_height = min(height, round(width / ASPECT[0]))
  whole_width = min(width, round(height * ASPECT[1]))
  top, left = (height - whole_height) // 2, (width - whole_width) // 2
  central = jnp.array([top, left, whole_height, whole_width], jnp.float32)
  return jnp.where(jnp.any(fits), box, central)


def _first_fit(place, sizes, fits, image_size):
  """The first box (top, left, height, width) that fits, or one of sides 0.

  `place` (2,) in [0, 1) says how far down and to the right it lies.
  """
  first = fits & (jnp.cumsum(fits) == 1)
  size = jnp.stack([jnp.sum(jnp.where(first, tried, 0)) for tried in sizes])
  room = jnp.array(image_size) - size + 1
  return jnp.concatenate([jnp.floor(place * room), size])


def random_flip(key, image, probability):
  """Mirrors left and right with the given probability."""
  flip = jax.random.bernoulli(key, probability)
  return jnp.where(flip, image[:, ::-1], image)


def pad_crop(key, image, padding):
  """torchvision's `RandomCrop(size, padding=padding)` at the image's size."""
  starts = jax.random.randint(key, (2,), 0, 2 * padding + 1)
  image = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  for axis, start in enumerate(starts):
    size = image.shape[axis] - 2 * padding
    # A TPU would run a dynamic slice image by image: an eighth of ViT's step.
    windows = [
      jax.lax.slice_in_dim(image, i, i + size, axis=axis)
      for i in range(2 * padding + 1)
    ]
    image = jnp.select([start == i for i in range(len(windows))], windows)
  return image


def random_erasing(key, image, probability, area, aspect, fill):
  """Fills a random rectangle with `fill` (3,), with the given probability.

  As in the paper's code: share of the area and height / width are uniform; the
  first of 100 tries that is smaller than the image counts.
  """
  height, width, _ = image.shape
  draws = jax.random.uniform(key, (ERASING_TRIES + 2, 2))
  shares, ratios = draws[2:].T
  pixels = height * width * (area[0] + shares * (area[1] - area[0]))
  ratios = aspect[0] + ratios * (aspect[1] - aspect[0])
  heights = jnp.round(jnp.sqrt(pixels * ratios))
  widths = jnp.round(jnp.sqrt(pixels / ratios))
  fits = (heights < height) & (widths < width)
  top, left, box_height, box_width = _first_fit(
    draws[1], (heights, widths), fits, (height, width)
  )
  row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
  inside = (row >= top) & (row < top + box_height)
  inside &= (column >= left) & (column < left + box_width)
  inside &= draws[0, 0] < probability
  fill = jnp.asarray(fill, image.dtype)[None, None, :]
  return jnp.where(inside[:, :, None], fill, image)


def shear_x(image, magnitude):
  """Shifts row y by magnitude × (y + 0.5) pixels; bicubic, fill 128.

  As Pillow's `transform(AFFINE, BICUBIC)`, whose cubic has a = -1.
  """
  height, width, _ = image.shape
  levels = to_levels(image)
  shift = (magnitude * (jnp.arange(height) + 0.5))[:, None]
  whole = jnp.floor(shift)
  d = (shift - whole)[:, :, None]
  weights = (
    d * (-1 + d * (2 - d)),
    1 + d * d * (-2 + d),
    d * (1 + d * (1 - d)),
    d * d * (-1 + d),
  )
  # No pixel that is kept has a tap beyond these two, which repeat.
  levels = jnp.pad(levels, ((0, 0), (2, 2), (0, 0)), mode="edge")
  near = kernels.rolled(levels, whole.astype(jnp.int32) + 1)
  total = sum(weights[tap] * near[:, tap : tap + width] for tap in range(4))
  source = (jnp.arange(width) + 0.5)[None, :] + shift
  inside = (source >= 0) & (source < width)
  sheared = to_image(jnp.floor(jnp.clip(total, 0, 255)))
  return jnp.where(inside[:, :, None], sheared, GREY)


def shear_y(image, magnitude):
  """Shifts column x by magnitude × (x + 0.5) pixels; as `shear_x`."""
  return shear_x(image.swapaxes(0, 1), magnitude).swapaxes(0, 1)


def translate_x(image, magnitude):
  """Shifts left by magnitude × width, to the nearest pixel; fill 128."""
  width = image.shape[1]
  shift = jnp.floor(magnitude * width + 0.5).astype(jnp.int32)
  source = jnp.arange(width) + shift
  inside = (source >= 0) & (source < width)
  moved = kernels.rolled(image, shift.reshape(1, 1))
  return jnp.where(inside[None, :, None], moved, GREY)


def translate_y(image, magnitude):
  """Shifts up by magnitude × height, to the nearest pixel; fill 128."""
  return translate_x(image.swapaxes(0, 1), magnitude).swapaxes(0, 1)


def rotate(image, degrees):
  """Rotates counter-clockwise about the centre; nearest pixel, fill 128."""
  height, width, _ = image.shape
  angle = jnp.deg2rad(degrees)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  # The source of the output's first pixel centre, in each direction.
  x = width / 2 + cos * (0.5 - width / 2) - sin * (0.5 - height / 2)
  y = height / 2 + sin * (0.5 - width / 2) + cos * (0.5 - height / 2)
  # To whole 65536ths, as in Pillow, which decides ties.
  cos, sin, x, y = (
    jnp.floor(value * 65536 + 0.5).astype(jnp.int32)
    for value in (cos, sin, x, y)
  )
  rows = jnp.arange(height)[:, None]
  columns = jnp.arange(width)[None, :]
  source_x = (x + cos * columns - sin * rows) >> 16
  source_y = (y + sin * columns + cos * rows) >> 16
  inside = (source_x >= 0) & (source_x < width)
  inside &= (source_y >= 0) & (source_y < height)
  source_x = jnp.clip(source_x, 0, width - 1)
  source_y = jnp.clip(source_y, 0, height - 1)
  turned = to_image(kernels.pixels(to_levels(image), source_y, source_x))
  return jnp.where(inside[:, :, None], turned, GREY)


def _round(levels):
  return jnp.clip(jnp.floor(levels + 0.5), 0, 255)
