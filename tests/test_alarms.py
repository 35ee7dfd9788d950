"""Warnings of collapse, of a signal that dies, and of a loss that jumps."""

import numpy as np
import pytest

from vit_ssl_jax.train import alarms


def test_warning_of_collapse():
  top = float(np.log(16))
  uniform = {"loss": top, "teacher_entropy": top, "teacher_kl": 0.0}
  one = {"loss": 2.0, "teacher_entropy": 1e-6, "teacher_kl": 1e-6}
  healthy = {"loss": top, "teacher_entropy": 1e-6, "teacher_kl": 1.5}
  assert alarms.collapse([uniform] * 60, 16) == "uniform"
  assert alarms.collapse([one] * 60, 16) == "one-hot"
  assert alarms.collapse([healthy] * 60, 16) is None
  assert alarms.collapse([uniform] * 59 + [healthy], 16) is None


# k-NN and signal of runs on 1,920 and 2,500 photos, evaluated ten or twenty
# times in their first quarter or less.
FAILING = [(37.7, 0.27), (37.9, 0.24), (38.3, 0.2), (37.3, 0.17)]
FAILED = [(25.6, 0.348), (25.8, 0.224), (26.2, 0.209)]
SLOW = [(26.0, 0.953), (25.9, 0.924), (26.1, 0.828), (26.7, 0.785)]
GOOD = [(29.2, 2.21), (31.3, 2.74), (31.9, 3.01)]


@pytest.mark.parametrize(
  ("history", "outputs", "untrained", "dies"),
  [
    (FAILING, 1024, 40.0, True),
    (FAILED, 1024, 25.6, True),
    (SLOW, 256, 25.6, False),
    (GOOD, 256, 25.6, False),
  ],
)
def test_a_signal_that_dies_is_told_from_a_slow_start(
  history, outputs, untrained, dies
):
  evaluated = [{"knn": knn, "signal": signal} for knn, signal in history]
  assert alarms.teacher_signal_vanishes(outputs, untrained, evaluated) == dies
  assert not alarms.teacher_signal_vanishes(outputs, untrained, evaluated[:2])
  better = [x | {"knn": untrained + 2} for x in evaluated]
  assert not alarms.teacher_signal_vanishes(outputs, untrained, better)


def test_warning_names_what_to_change(pretrain_tiny):
  top = float(np.log(16))
  uniform = {"loss": top, "teacher_entropy": top, "teacher_kl": 0.0}
  alive = {"loss": 2.7, "teacher_entropy": 2.6, "teacher_kl": 0.1}
  evaluated = [{"knn": knn, "signal": x / 2} for knn, x in FAILING]

  def warn(values, steps_per_epoch=3, share=0.2, untrained=40.0):
    lines = [{"step": i} | values for i in range(100, 200)]
    return alarms.collapse_warning(
      *(pretrain_tiny, steps_per_epoch, lines, evaluated),
      *({"knn_untrained": untrained}, share),
    )

  assert "collapsed to uniform" in warn(uniform)
  assert "teacher.centering=sinkhorn" in warn(uniform)
  assert warn(uniform, steps_per_epoch=150) is None
  assert "0.135, then 0.085 nats" in warn(alive)
  assert "only 3 steps an epoch" in warn(alive)
  assert warn(alive, share=0.05) is None
  assert warn(alive, untrained=30.0) is None


def warned(losses, every=20):
  """Steps of a run after whose log the loss is warned of."""
  lines = [{"loss": float(x)} for x in losses]
  return [
    step
    for step in range(every, len(lines) + 1, every)
    if alarms.loss_spike_warning(lines[max(0, step - 100) : step])
  ]


def test_a_loss_that_jumps_is_warned_of():
  """Mixed batches have twice the loss of others, which is no jump."""
  for seed in range(20):
    rng = np.random.default_rng(seed)
    mixed = rng.random(1000) < 0.5
    decay = np.exp(-np.arange(1000) / 200)
    good = 0.55 + 1.7 * decay + mixed * (0.75 - 0.5 * decay)
    good *= rng.normal(1, 0.08, 1000)
    assert not warned(good)
    diverged = [*good, *rng.normal(2.5, 0.1, 40)]
    assert warned(diverged) == [1020]
    spike = [*good, 9.0, *good[-59:]]  # one step alone
    assert not warned(spike)
