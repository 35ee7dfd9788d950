"""Schedules: what a value is at each step of a run.

Each is a function of the step: in float64 of NumPy's integers, in float32 of a
device's. It depends on the configured length of the run alone, so that a run
stopped early, or resumed, follows the same schedule as a whole one.
"""

import numpy as np


def cosine(start, end, steps):
  """Half a cosine from `start` towards `end`, which it would reach at `steps`.

  Returns:
    A function of the step.
  """

  def value(step):
    xp = step.__array_namespace__()
    # (1 + cos x) / 2, in a form that float32 has exact at the end.
    left = (steps - step) / steps
    return end + (start - end) * xp.sin(np.pi / 2 * left) ** 2

  return value


def pretrain_learning_rate(peak, end, steps, warmup_steps):
  """Linear from 0 to `peak`, reached at the last warm-up step, then a cosine.

  As in DINO (Caron et al., 2021, section 3.2).

  Returns:
    A function of the step.
  """
  warmup = linear(0, peak, warmup_steps - 1)
  return in_turn(warmup, warmup_steps, cosine(peak, end, steps - warmup_steps))


def finetune_learning_rate(peak, end, steps, warmup_steps):
  """Linear from `end` to `peak`, reached after the warm-up, then a cosine.

  The paper's code, but for a run without warm-up, whose first step it makes at
  `end` and this one at `peak`.

  Returns:
    A function of the step.
  """
  warmup = linear(end, peak, warmup_steps)
  return in_turn(warmup, warmup_steps, cosine(peak, end, steps - warmup_steps))


def teacher_temperature(start, end, warmup_epochs):
  """Linear from `start` to `end` over the warm-up, epoch by epoch.

  Returns:
    A function of the epoch.
  """
  warmup = linear(start, end, warmup_epochs - 1)
  return in_turn(warmup, warmup_epochs, lambda epoch: end)


def linear(start, end, steps):
  """From `start` to `end`, which it reaches at `steps`."""
  return lambda step: start + (end - start) * (step / max(steps, 1))


def in_turn(first, steps, then):
  """A schedule for the first steps, and another one that begins after them."""

  def value(step):
    xp = step.__array_namespace__()
    return xp.where(step < steps, first(step), then(step - steps))

  return value
