"""Each operation on one image against Pillow, at random parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_ssl_jax.augment import color, geometry

Image = pytest.importorskip("PIL.Image")
ImageEnhance = pytest.importorskip("PIL.ImageEnhance")
ImageFilter = pytest.importorskip("PIL.ImageFilter")
ImageOps = pytest.importorskip("PIL.ImageOps")

COUNT = 8
GREY = (128, 128, 128)


def _images(height, width, seed=0):
  """uint8 (COUNT, H, W, 3): smooth shapes with noise, and one constant."""
  generator = np.random.default_rng(seed)
  small = generator.integers(0, 256, (COUNT, 4, 4, 3), np.uint8)
  images = np.stack(
    [np.asarray(Image.fromarray(s).resize((width, height))) for s in small]
  ).astype(int)
  noise = generator.integers(-20, 21, images.shape)
  images = np.clip(images + noise, 0, 255).astype(np.uint8)
  images[0] = 77
  return images


def _affine(image, coefficients, resample):
  return image.transform(
    image.size, Image.Transform.AFFINE, coefficients, resample, fillcolor=GREY
  )


def _rotate(image, degrees):
  turned = image.convert("RGBA").rotate(degrees)
  grey = Image.new("RGBA", image.size, (128,) * 4)
  return Image.composite(turned, grey, turned).convert("RGB")


def _hue(image, shift):
  h, s, v = image.convert("HSV").split()
  h = (np.asarray(h).astype(int) + int(shift * 255)) % 256
  h = Image.fromarray(h.astype(np.uint8))
  return Image.merge("HSV", (h, s, v)).convert("RGB")


BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST

# name -> (ours, Pillow's, smallest and largest parameter)
OPERATIONS = {
  "brightness": (
    color.brightness,
    lambda image, x: ImageEnhance.Brightness(image).enhance(x),
    (0.0, 2.0),
  ),
  "contrast": (
    color.contrast,
    lambda image, x: ImageEnhance.Contrast(image).enhance(x),
    (0.0, 2.0),
  ),
  "saturation": (
    color.saturation,
    lambda image, x: ImageEnhance.Color(image).enhance(x),
    (0.0, 2.0),
  ),
  "sharpness": (
    color.sharpness,
    lambda image, x: ImageEnhance.Sharpness(image).enhance(x),
    (0.0, 2.0),
  ),
  "hue": (color.hue, _hue, (-0.5, 0.5)),
  "grayscale": (
    lambda image, _: color.grayscale(image),
    lambda image, _: image.convert("L").convert("RGB"),
    (0, 1),
  ),
  "blur": (
    color.gaussian_blur,
    lambda image, x: image.filter(ImageFilter.GaussianBlur(float(x))),
    (0.0, 3.0),
  ),
  "solarize": (color.solarize, ImageOps.solarize, (0, 256)),
  "posterize": (
    lambda image, x: color.posterize(image, jnp.round(x)),
    lambda image, x: ImageOps.posterize(image, round(float(x))),
    (1, 8),
  ),
  "invert": (
    lambda image, _: color.invert(image),
    lambda image, _: ImageOps.invert(image),
    (0, 1),
  ),
  "autocontrast": (
    lambda image, _: color.autocontrast(image),
    lambda image, _: ImageOps.autocontrast(image),
    (0, 1),
  ),
  "equalize": (
    lambda image, _: color.equalize(image),
    lambda image, _: ImageOps.equalize(image),
    (0, 1),
  ),
  "shear_x": (
    geometry.shear_x,
    lambda image, x: _affine(image, (1, x, 0, 0, 1, 0), BICUBIC),
    (-0.5, 0.5),
  ),
  "shear_y": (
    geometry.shear_y,
    lambda image, x: _affine(image, (1, 0, 0, x, 1, 0), BICUBIC),
    (-0.5, 0.5),
  ),
  "translate_x": (
    geometry.translate_x,
    lambda image, x: _affine(image, (1, 0, x * image.width, 0, 1, 0), NEAREST),
    (-0.6, 0.6),
  ),
  "translate_y": (
    geometry.translate_y,
    lambda image, x: _affine(image, (1, 0, 0, 0, 1, x * image.height), NEAREST),
    (-0.6, 0.6),
  ),
  "rotate": (geometry.rotate, _rotate, (0, 360)),
}


def _assert_close(ours, expected, mean=0.5, far=0.005):
  gap = np.abs(np.asarray(ours, np.float64) * 255 - expected)
  assert np.all(np.isfinite(ours))
  assert np.min(ours) >= 0
  assert np.max(ours) <= 1
  assert gap.mean() <= mean
  assert np.mean(gap > 4) <= far


# Colour operations do not look at the shape: one is enough for them.
CASES = [(name, (28, 20)) for name in OPERATIONS] + [
  (name, (8, 8))
  for name in ("blur", "sharpness", "shear_x", "translate_y", "rotate")
]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_agrees_with_pillow(name, shape):
  ours, pillow, (low, high) = OPERATIONS[name]
  images = _images(*shape)
  draws = np.random.default_rng(1).uniform(low, high, COUNT)
  expected = [
    np.asarray(pillow(Image.fromarray(image), draw))
    for image, draw in zip(images, draws, strict=True)
  ]
  ours = jax.jit(jax.vmap(ours))(
    jnp.asarray(images, jnp.float32) / 255, jnp.asarray(draws, jnp.float32)
  )
  _assert_close(ours, np.stack(expected))


@pytest.mark.parametrize("size", [8, 16, 28, 64])
def test_resized_crop_agrees_with_pillow(size):
  height, width = 48, 40
  images = _images(height, width)
  generator = np.random.default_rng(2)
  heights = generator.integers(1, height + 1, COUNT)
  widths = generator.integers(1, width + 1, COUNT)
  tops = generator.integers(0, height - heights + 1)
  lefts = generator.integers(0, width - widths + 1)
  expected = [
    np.asarray(
      Image.fromarray(image)
      .crop((left, top, left + w, top + h))
      .resize((size, size), BICUBIC)
    )
    for image, top, left, h, w in zip(
      images, tops, lefts, heights, widths, strict=True
    )
  ]
  boxes = np.stack([tops, lefts, heights, widths], axis=1)
  crop = functools.partial(geometry.resized_crop, size=size)
  ours = jax.jit(jax.vmap(crop))(
    jnp.asarray(images, jnp.float32) / 255, boxes.astype(np.float32)
  )
  # Newer Pillows resize rows first where that is less work: ±1 by rounding.
  _assert_close(ours, np.stack(expected), mean=0.4, far=0)


def test_parameters_that_change_nothing():
  images = jnp.asarray(_images(8, 8), jnp.float32) / 255
  neutral = {
    "brightness": 1.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "sharpness": 1.0,
    "blur": 0.0,
    "solarize": 256.0,
    "posterize": 8.0,
    "shear_x": 0.0,
    "translate_y": 0.0,
    "rotate": 0.0,
  }

  @jax.jit
  def run(images):
    return {
      name: jax.vmap(OPERATIONS[name][0], (0, None))(images, x)
      for name, x in neutral.items()
    }

  for name, ours in run(images).items():
    np.testing.assert_allclose(ours, images, atol=1e-6, err_msg=name)


def test_blur_is_pillows_to_the_level():
  """Also at small radii, where each box changes less than a level."""
  images = _images(20, 28)
  for radius in np.random.default_rng(3).uniform(*color.BLUR_RADIUS, 20):
    expected = [
      np.asarray(
        Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(radius)))
      )
      for image in images
    ]
    ours = jax.vmap(color.gaussian_blur, (0, None))(images / 255, radius)
    assert np.mean(np.round(ours * 255) != np.stack(expected)) < 1e-3
