"""Operations on one image against Pillow, where golden numbers do not reach.

Constant and oblong images, and any parameter.
"""

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


BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST

# name -> (ours, Pillow's, smallest and largest parameter)
OPERATIONS = {
  "sharpness": (
    color.sharpness,
    lambda image, x: ImageEnhance.Sharpness(image).enhance(x),
    (0.0, 2.0),
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


@pytest.mark.parametrize("name", OPERATIONS)
def test_agrees_with_pillow(name):
  ours, pillow, (low, high) = OPERATIONS[name]
  images = _images(28, 20)
  draws = np.random.default_rng(1).uniform(low, high, COUNT)
  expected = [
    np.asarray(pillow(Image.fromarray(image), draw))
    for image, draw in zip(images, draws, strict=True)
  ]
  ours = jax.jit(jax.vmap(ours))(
    jnp.asarray(images, jnp.float32) / 255, jnp.asarray(draws, jnp.float32)
  )
  assert np.min(ours) >= 0
  assert np.max(ours) <= 1
  gap = np.abs(np.asarray(ours, np.float64) * 255 - np.stack(expected))
  assert gap.mean() <= 0.5
  assert np.mean(gap > 4) <= 0.005


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
