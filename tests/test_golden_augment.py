"""The augmentations against golden numbers that Pillow computed.

GOLDEN_DIR names another folder of the same format (see its README.md).
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_ssl_jax.augment import autoaugment as policies, color, geometry

GOLDEN_DIR = pathlib.Path(
  os.environ.get("GOLDEN_DIR", pathlib.Path(__file__).parent / "golden")
)


@functools.cache
def _golden():
  with np.load(GOLDEN_DIR / "augment.npz") as file:
    return dict(file)


def _names(prefix):
  return [
    name
    for name in _golden()
    if name.startswith(prefix) and not name.endswith(("_level", "_sign"))
  ]


def _assert_agree(ours, expected, differing=0.006):
  """Ours in [0, 1], expected uint8: the same levels but for a small share.

  golden/README.md allows much more, a mean difference of 1; blurring without
  Pillow's roundings in between stays within that, and smooths too much.
  """
  assert ours.shape == expected.shape
  levels = np.round(np.asarray(ours, np.float64) * 255)
  assert np.mean(levels != expected) <= differing


def _run(operation, *arguments, images="images"):
  images = jnp.asarray(_golden()[images], jnp.float32) / 255
  arguments = [jnp.asarray(argument, jnp.float32) for argument in arguments]
  return jax.jit(jax.vmap(operation))(images, *arguments)


@pytest.mark.parametrize("name", _names("resized_crop_bicubic_"))
def test_resized_crop(name):
  expected = _golden()[name]
  boxes = _golden()["crop_box_top_left_height_width"]
  crop = functools.partial(geometry.resized_crop, size=expected.shape[1])
  # Newer Pillows resize rows first where that is less work: ±1 by rounding.
  _assert_agree(_run(crop, boxes), expected, differing=0.09)


@pytest.mark.parametrize(
  ("name", "parameter"),
  [
    ("brightness", "brightness_factor"),
    ("contrast", "contrast_factor"),
    ("saturation", "saturation_factor"),
    ("hue", "hue_shift"),
  ],
)
def test_color(name, parameter):
  ours = _run(getattr(color, name), _golden()[parameter])
  _assert_agree(ours, _golden()[name])


def test_grayscale():
  _assert_agree(_run(color.grayscale), _golden()["grayscale"])


@pytest.mark.parametrize("name", sorted({*_names("blur")} - {"blur_radius"}))
def test_blur(name):
  images = name.replace("blur", "images")
  ours = _run(color.gaussian_blur, _golden()["blur_radius"], images=images)
  _assert_agree(ours, _golden()[name])


@pytest.mark.parametrize("name", _names("solarize_"))
def test_solarize(name):
  threshold = int(name.removeprefix("solarize_"))
  ours = _run(functools.partial(color.solarize, threshold=threshold))
  _assert_agree(ours, _golden()[name])


@pytest.mark.parametrize("name", _names("autoaugment/"))
def test_autoaugment_operation(name):
  operation = functools.partial(
    policies.apply_operation, name.removeprefix("autoaugment/")
  )
  images = jnp.asarray(_golden()["images"], jnp.float32) / 255
  level, sign = _golden()[name + "_level"], _golden()[name + "_sign"]
  ours = jax.jit(jax.vmap(operation))(images, level, sign)
  _assert_agree(ours, _golden()[name])


def test_policies_are_the_published_ones():
  golden = json.loads((GOLDEN_DIR / "autoaugment_policies.json").read_text())
  assert golden["magnitudes"] == policies.MAGNITUDES
  assert golden["policies"] == json.loads(json.dumps(policies.POLICIES))
