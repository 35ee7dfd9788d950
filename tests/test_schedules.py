"""Ends and corners of the schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_ssl_jax.train import schedules

STEPS = np.arange(100)


def test_cosine_starts_and_nearly_ends_where_it_says():
  table = schedules.cosine(0.04, 0.4, 1000)(np.arange(1000))
  assert abs(table[0] - 0.04) < 1e-15
  assert abs(table[-1] - 0.4) < 1e-5
  assert (np.diff(table) > 0).all()


def test_warmup_reaches_its_peak():
  table = schedules.pretrain_learning_rate(1e-3, 1e-6, 100, 10)(STEPS)
  assert table[0] == 0
  assert table.argmax() == 9
  assert table[9] == table[10] == pytest.approx(1e-3, rel=1e-12)
  table = schedules.finetune_learning_rate(1e-3, 1e-6, 100, 10)(STEPS)
  assert table[0] == 1e-6
  assert table.argmax() == 10
  assert table[10] == pytest.approx(1e-3, rel=1e-12)


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
