"""Corners of the schedules; test_golden.py has their values."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.train import schedules

STEPS = np.arange(100)


def test_without_warmup():
  for schedule in (
    schedules.pretrain_learning_rate,
    schedules.finetune_learning_rate,
  ):
    assert abs(schedule(1e-3, 1e-6, 50, 0)(STEPS[:1])[0] - 1e-3) < 1e-15


def test_temperature_of_a_run_shorter_than_its_warmup():
  table = schedules.teacher_temperature(0.04, 0.07, 10)(np.arange(3))
  np.testing.assert_allclose(table, np.linspace(0.04, 0.07, 10)[:3])
  table = schedules.teacher_temperature(0.02, 0.02, 0)(np.arange(4))
  assert table.tolist() == [0.02] * 4


def test_a_device_has_them_to_the_last_digits_of_float32():
  """At the end too, where 1 + cos x would have none left."""
  steps = 2_000_000
  schedule = schedules.pretrain_learning_rate(1e-3, 0, steps, 1000)
  some = np.r_[0:2000, steps - 2000 : steps]
  found = jax.jit(schedule)(jnp.asarray(some))
  np.testing.assert_allclose(found, schedule(some), rtol=1e-6)
