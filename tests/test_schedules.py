"""Ends and corners of the schedules."""

import numpy as np
import pytest

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.train import schedules


def test_cosine_starts_and_nearly_ends_where_it_says():
  table = schedules.cosine(0.04, 0.4, 1000)
  assert table.shape == (1000,)
  assert abs(table[0] - 0.04) < 1e-15
  assert abs(table[-1] - 0.4) < 1e-5
  assert (np.diff(table) > 0).all()


def test_warmup_reaches_its_peak():
  table = schedules.pretrain_learning_rate(1e-3, 1e-6, 100, 10)
  assert table[0] == 0
  assert table[9] == table.max() == 1e-3
  table = schedules.finetune_learning_rate(1e-3, 1e-6, 100, 10)
  assert table[0] == 1e-6
  assert table[10] == table.max() == 1e-3


def test_without_warmup():
  for schedule in (
    schedules.pretrain_learning_rate,
    schedules.finetune_learning_rate,
  ):
    table = schedule(1e-3, 1e-6, 50, 0)
    assert table.shape == (50,)
    assert abs(table[0] - 1e-3) < 1e-15


def test_warmup_longer_than_the_run():
  with pytest.raises(UserError, match=r"optim\.warmup_epochs"):
    schedules.finetune_learning_rate(1e-3, 1e-6, 10, 10)


def test_temperature_of_a_run_shorter_than_its_warmup():
  table = schedules.teacher_temperature(0.04, 0.07, 3, 10)
  np.testing.assert_allclose(table, np.linspace(0.04, 0.07, 10)[:3])
  assert schedules.teacher_temperature(0.02, 0.02, 4, 0).tolist() == [0.02] * 4
