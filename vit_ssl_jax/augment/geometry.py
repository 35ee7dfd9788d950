"""Crops, flips and affine maps of one image, float32 (H, W, 3) in [0, 1].

They agree with Pillow and torchvision on 8-bit images. A pixel (row, column)
covers [row, row + 1) × [column, column + 1): its centre lies at + 0.5.
Parameters may be traced; sizes of outputs are static.
"""

import math

import jax
import jax.numpy as jnp

from vit_ssl_jax.augment.color import to_image, to_levels

ERASING_TRIES = 100
GREY = 128 / 255  # fills what an affine map uncovers, as AutoAugment has it


def resize_matrix(size, start, length, input_size):
  """Weights (size, input_size) of Pillow's bicubic resize along one axis.

  Pixels start … start + length - 1 of input_size become `size` pixels, as if
  the rest had been cut off first. The cubic has a = -0.5 and is stretched by
  the factor of reduction, if there is one (antialiasing).
  """
  start = jnp.asarray(start, jnp.float32)
  length = jnp.asarray(length, jnp.float32)
  scale = length / size
  stretch = jnp.maximum(scale, 1)
  centre = ((jnp.arange(size) + 0.5) * scale)[:, None]
  pixel = jnp.arange(input_size)[None, :] - start
  first = jnp.floor(centre - 2 * stretch + 0.5)
  last = jnp.floor(centre + 2 * stretch + 0.5)
  inside = (pixel >= jnp.maximum(first, 0)) & (
    pixel < jnp.minimum(last, length)
  )
  x = jnp.abs(pixel + 0.5 - centre) / stretch
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  weight = jnp.where(x < 1, near, jnp.where(x < 2, far, 0)) * inside
  return weight / jnp.sum(weight, axis=1, keepdims=True)


def resized_crop(image, box, size):
  """Cuts out box = (top, left, height, width), resizes to (size, size, 3).

  As Pillow's crop and bicubic resize: columns first, and 8-bit levels after
  either pass.
  """
  top, left, height, width = box
  rows = resize_matrix(size, top, height, image.shape[0])
  columns = resize_matrix(size, left, width, image.shape[1])
  levels = to_levels(image)
  levels = jnp.einsum("jw,hwc->hjc", columns, levels, precision="highest")
  levels = _round(levels)
  levels = jnp.einsum("ih,hjc->ijc", rows, levels, precision="highest")
  return to_image(_round(levels))


def crop_box(draws, height, width, scale, ratio=(3 / 4, 4 / 3)):
  """A random box (top, left, height, width), whole numbers as float32, from
  uniform draws (11, 2).

  As torchvision's `RandomResizedCrop.get_params`: the first of ten tries
  (share of the area uniform in `scale`, log of the aspect ratio uniform) that
  fits, at a uniform place; else the largest central box in the ratio's range.
  """
  area = height * width * (scale[0] + draws[:10, 0] * (scale[1] - scale[0]))
  low, high = math.log(ratio[0]), math.log(ratio[1])
  aspect = jnp.exp(low + draws[:10, 1] * (high - low))
  widths = jnp.round(jnp.sqrt(area * aspect))
  heights = jnp.round(jnp.sqrt(area / aspect))
  fits = (widths >= 1) & (widths <= width) & (heights >= 1)
  fits &= heights <= height
  first = fits & (jnp.cumsum(fits) == 1)
  found = jnp.any(fits)
  box_height = jnp.sum(jnp.where(first, heights, 0))
  box_width = jnp.sum(jnp.where(first, widths, 0))
  whole_height = min(height, round(width / ratio[0]))
  whole_width = min(width, round(height * ratio[1]))
  top = jnp.floor(draws[10, 0] * (height - box_height + 1))
  left = jnp.floor(draws[10, 1] * (width - box_width + 1))
  return (
    jnp.where(found, top, (height - whole_height) // 2),
    jnp.where(found, left, (width - whole_width) // 2),
    jnp.where(found, box_height, whole_height),
    jnp.where(found, box_width, whole_width),
  )


def random_resized_crop(key, image, size, scale, ratio=(3 / 4, 4 / 3)):
  """torchvision's `RandomResizedCrop(size, scale, ratio, BICUBIC)`."""
  draws = jax.random.uniform(key, (11, 2))
  box = crop_box(draws, image.shape[0], image.shape[1], scale, ratio)
  return resized_crop(image, box, size)


def random_flip(key, image, probability):
  """Mirrors left and right with the given probability."""
  flip = jax.random.uniform(key) < probability
  return jnp.where(flip, image[:, ::-1], image)


def pad_crop(key, image, padding):
  """torchvision's `RandomCrop(size, padding=padding)` at the image's size."""
  return shifted_crop(jax.random.uniform(key, (2,)), image, padding)


def shifted_crop(draws, image, padding):
  """`pad_crop` from two uniform draws: a window of the image's size, each of
  its (2 padding + 1)² places alike, in the image padded with zeros."""
  wide = ((padding, padding), (padding, padding), (0, 0))
  padded = jnp.pad(image, wide)
  row, column = jnp.floor(draws * (2 * padding + 1)).astype(jnp.int32)
  return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def random_erasing(
  key, image, probability, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3), fill=0.0
):
  """Fills a random rectangle with `fill`, a scalar or one value per channel.

  Share of the area and height/width are uniform; as in the paper's code, the
  first of 100 tries counts whose sides are both below the image's, at a
  uniform place. If there is none, nothing is erased.
  """
  draws = jax.random.uniform(key, (ERASING_TRIES + 2, 2))
  return erase(draws, image, probability, area, aspect, fill)


def erase(draws, image, probability, area, aspect, fill):
  """`random_erasing` from uniform draws (ERASING_TRIES + 2, 2)."""
  height, width, channels = image.shape
  tries, place, (chance, _) = draws[:-2], draws[-2], draws[-1]
  pixels = height * width * (area[0] + tries[:, 0] * (area[1] - area[0]))
  ratios = aspect[0] + tries[:, 1] * (aspect[1] - aspect[0])
  heights = jnp.round(jnp.sqrt(pixels * ratios))
  widths = jnp.round(jnp.sqrt(pixels / ratios))
  fits = (heights < height) & (widths < width)
  first = fits & (jnp.cumsum(fits) == 1)
  box_height = jnp.sum(jnp.where(first, heights, 0))
  box_width = jnp.sum(jnp.where(first, widths, 0))
  top = jnp.floor(place[0] * (height - box_height + 1))
  left = jnp.floor(place[1] * (width - box_width + 1))
  row = jnp.arange(height)[:, None, None]
  column = jnp.arange(width)[None, :, None]
  inside = (row >= top) & (row < top + box_height)
  inside &= (column >= left) & (column < left + box_width)
  inside &= chance < probability
  fill = jnp.broadcast_to(jnp.asarray(fill, image.dtype), (channels,))
  return jnp.where(inside, fill[None, None, :], image)


def shear_x(image, magnitude):
  """Shifts row y by magnitude × (y + 0.5) pixels; bicubic, fill 128.

  As Pillow's `transform(AFFINE, BICUBIC)`, whose cubic has a = -1, which
  repeats the outermost pixels under the taps and truncates the result.
  """
  height, width, _ = image.shape
  levels = to_levels(image)
  rows = jnp.arange(height)[:, None]
  source = (jnp.arange(width) + 0.5)[None, :] + magnitude * (rows + 0.5)
  inside = (source >= 0) & (source < width)
  left = jnp.floor(source - 0.5)
  d = source - 0.5 - left
  weights = (
    d * (-1 + d * (2 - d)),
    1 + d * d * (-2 + d),
    d * (1 + d * (1 - d)),
    d * d * (-1 + d),
  )
  total = 0.0
  for tap, weight in enumerate(weights):
    column = jnp.clip(left.astype(jnp.int32) + (tap - 1), 0, width - 1)
    total += weight[:, :, None] * levels[rows, column]
  sheared = to_image(jnp.floor(jnp.clip(total, 0, 255)))
  return jnp.where(inside[:, :, None], sheared, GREY)


def shear_y(image, magnitude):
  """Shifts column x by magnitude × (x + 0.5) pixels; as `shear_x`."""
  return _transpose(shear_x(_transpose(image), magnitude))


def translate_x(image, magnitude):
  """Shifts left by magnitude × width, to the nearest pixel; fill 128."""
  width = image.shape[1]
  source = jnp.arange(width) + jnp.floor(magnitude * width + 0.5)
  inside = (source >= 0) & (source < width)
  column = jnp.clip(source, 0, width - 1).astype(jnp.int32)
  return jnp.where(inside[None, :, None], image[:, column], GREY)


def translate_y(image, magnitude):
  """Shifts up by magnitude × height, to the nearest pixel; fill 128."""
  return _transpose(translate_x(_transpose(image), magnitude))


def rotate(image, degrees):
  """Turns counter-clockwise about the centre; nearest pixel, fill 128.

  Like Pillow's `rotate`, in fixed point with 16 bits after the point: that
  decides which pixel is nearest where two are equally near.
  """
  height, width, _ = image.shape
  angle = jnp.deg2rad(degrees)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  # The source of the output's first pixel centre, in each direction.
  x = width / 2 + cos * (0.5 - width / 2) - sin * (0.5 - height / 2)
  y = height / 2 + sin * (0.5 - width / 2) + cos * (0.5 - height / 2)
  cos, sin, x, y = (_fixed(value) for value in (cos, sin, x, y))
  rows = jnp.arange(height)[:, None]
  columns = jnp.arange(width)[None, :]
  source_x = (x + cos * columns - sin * rows) >> 16
  source_y = (y + sin * columns + cos * rows) >> 16
  inside = (source_x >= 0) & (source_x < width)
  inside &= (source_y >= 0) & (source_y < height)
  source_x = jnp.clip(source_x, 0, width - 1)
  source_y = jnp.clip(source_y, 0, height - 1)
  return jnp.where(inside[:, :, None], image[source_y, source_x], GREY)


def _fixed(value):
  """To whole 65536ths."""
  return jnp.floor(value * 65536 + 0.5).astype(jnp.int32)


def _round(levels):
  """To the nearest level that exists."""
  return jnp.clip(jnp.floor(levels + 0.5), 0, 255)


def _transpose(image):
  return jnp.swapaxes(image, 0, 1)
