"""The TPU's kernel moves tokens as the plain form does, to the bit."""

import functools

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vit_ssl_jax.models import kernels, windows


@pytest.mark.parametrize(
  ("shape", "window", "shift"),
  [
    ((3, 8, 8, 5), 4, 2),
    ((3, 8, 12, 5), 4, 0),
    ((2, 9, 9, 4), 3, 1),
    ((windows.VIEWS + 1, 4, 4, 2), 2, 1),
  ],
)
def test_to_windows_and_back(shape, window, shift, monkeypatch):
  x, g = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

  def cut(x, fast):
    return windows.to_windows(x, window, shift, fast)

  def cut_and_join(x, fast):
    return windows.from_windows(
      cut(x, fast) ** 2, *shape[1:3], window, shift, fast
    )

  @functools.partial(jax.jit, static_argnums=0)
  def results(fast):
    y, pull = jax.vjp(lambda x: cut_and_join(x, fast), x)
    return cut(x, fast), y, *pull(g)

  expected = results(False)
  monkeypatch.setattr(kernels, "many_on_tpu", lambda batch: True)
  with pltpu.force_tpu_interpret_mode():
    found = results(True)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
  ("shape", "applies"),
  [((64, 8, 8), True), ((64, 4, 4), False), ((64, 7, 8), False)],
)
def test_where_the_kernel_applies(shape, applies, monkeypatch):
  assert not windows.kernel_applies(*shape, 4)
  monkeypatch.setattr(kernels, "platform", lambda: "tpu")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert windows.kernel_applies(*shape, 4) == applies
  assert not windows.kernel_applies(8, *shape[1:], 4)  # too few views
