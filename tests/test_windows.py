"""The TPU's kernel moves tokens as XLA's form does, to the bit."""

import functools

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vit_ssl_jax.kernels import windows


@pytest.mark.parametrize(
  ("shape", "window", "shift"),
  [
    ((3, 8, 8, 5), 4, 2),
    ((3, 8, 12, 5), 4, 0),
    ((2, 9, 9, 4), 3, 1),
    ((windows.VIEWS + 1, 4, 4, 2), 2, 1),
  ],
)
def test_to_windows_and_back(shape, window, shift):
  x, g = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
  size = {"H": shape[1], "W": shape[2], "window": window, "shift": shift}

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def results(cut, join):
    def squared(x):
      return join(cut(x, **size) ** 2, **size)

    y, pull = jax.vjp(squared, x)
    return cut(x, **size), y, *pull(g)

  expected = results(windows.cut, windows.join)
  with pltpu.force_tpu_interpret_mode():
    actual = results(windows.cut_by_kernel, windows.join_by_kernel)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)
