"""Both forms of lookups give the same bits."""

import math
import re

import jax
import numpy as np
import pytest

from vit_ssl_jax import recipes
from vit_ssl_jax.augment import pipelines
from vit_ssl_jax.kernels import lookup


@pytest.fixture
def levels():
  """(B, 8, 6, 3) whole numbers from 0 to 255, both ends among them."""
  found = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), np.int32)
  found[0, 0, 0], found[0, 0, 1] = 0, 255
  return found


def test_counts_and_tables(levels):
  levels = levels.reshape(5, -1, 3)
  expected = jax.vmap(lookup.histogram)(levels)
  assert (expected.sum(-1) == 48).all()
  found = jax.jit(jax.vmap(lookup.compared_histogram))(levels)
  np.testing.assert_array_equal(found, expected)
  table = np.random.default_rng(1).permutation(256 * 15).reshape(5, 3, 256)
  table = table.astype(np.int32) % 256
  expected = jax.vmap(lookup.table_lookup)(table, levels)
  found = jax.jit(jax.vmap(lookup.compared_table_lookup))(table, levels)
  np.testing.assert_array_equal(found, expected)


def test_pixels(levels):
  rng = np.random.default_rng(2)
  levels = levels.astype(np.float32)
  rows = rng.integers(0, 8, (5, 8, 6), np.int32)
  columns = rng.integers(0, 6, (5, 8, 6), np.int32)
  expected = jax.vmap(lookup.gathered)(levels, rows, columns)
  found = jax.jit(jax.vmap(lookup.compared_pixels))(levels, rows, columns)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rows", [1, 8])
def test_rolled(levels, rows):
  shifts = np.random.default_rng(3).integers(-9, 10, (5, rows, 1), np.int32)
  expected = np.stack(
    [
      [
        np.roll(row, -n, 0)
        for row, n in zip(image, np.resize(s, 8), strict=True)
      ]
      for image, s in zip(levels, shifts, strict=True)
    ]
  )
  for form in (lookup.rolled, lookup.selected_rolled):
    found = jax.jit(jax.vmap(form))(levels, shifts)
    np.testing.assert_array_equal(found, expected)


def test_fine_tuning_on_a_tpu(monkeypatch):
  """The same bits, and no lookup but of an image's policy."""
  config = recipes.get("finetune", "vit,cifar10").augment
  images = np.random.default_rng(4).integers(0, 256, (16, 32, 32, 3), np.uint8)

  def augmented(images):
    key = jax.random.key(0)
    mean, std = (0.5,) * 3, (0.25,) * 3
    return pipelines.supervised(key, images, config, mean, std)

  traced = jax.jit(augmented).trace(images)
  expected = traced.lower().compile()(images)
  chosen = []

  def for_tpu(*given, tpu, default):
    assert default is not tpu
    chosen.append(tpu)
    return tpu(*given)

  traced.lower(lowering_platforms=("cpu", "cuda", "tpu"))
  monkeypatch.setattr(jax.lax, "platform_dependent", for_tpu)
  jax.clear_caches()
  lowered = jax.jit(augmented).lower(images)
  np.testing.assert_array_equal(lowered.compile()(images), expected)
  assert len(set(chosen)) == 4
  for line in lowered.as_text().splitlines():
    if "stablehlo.gather" in line:
      sizes = re.findall(r"(\d+)x", line.rpartition("tensor<")[2])
      assert math.prod(map(int, sizes)) == 16  # a number an image
    assert "xi32>) -> tensor<16x768xi32>" not in line  # no histogram by scatter


def test_large_images_are_looked_up(monkeypatch):
  monkeypatch.delattr(lookup, "few_pixels")
  monkeypatch.setattr(lookup, "MOST", 47)
  levels, zeros = np.ones((8, 6, 1), np.float32), np.zeros((8, 6), np.int32)
  assert lookup.pixels(levels, zeros, zeros).shape == (8, 6, 1)
