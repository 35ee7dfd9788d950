"""Schedules: functions of the step, exact in float32 where optax's are not."""

import numpy as np


def cosine(start, end, steps):
  """Half a cosine from `start` to `end`, reached at `steps`."""

  def value(step):
    xp = step.__array_namespace__()
    # (1 + cos x) / 2, in a form that is exact in float32 at the end.
    left = (steps - step) / steps
    return end + (start - end) * xp.sin(np.pi / 2 * left) ** 2

  return value


def linear(start, end, steps):
  return lambda step: start + (end - start) * (step / max(steps, 1))


def join(first, steps, then):
  """`first` for `steps` steps, then `then`, counted from its own start."""

  def value(step):
    xp = step.__array_namespace__()
    return xp.where(step < steps, first(step), then(step - steps))

  return value


def pretrain_learning_rate(peak, end, steps, warmup_steps):
  """Linear from 0 to `peak` at the last warm-up step, then a cosine (DINO)."""
  warmup = linear(0, peak, warmup_steps - 1)
  return join(warmup, warmup_steps, cosine(peak, end, steps - warmup_steps))


def finetune_learning_rate(peak, end, steps, warmup_steps):
  """Linear from `end` to `peak` over the warm-up, then a cosine."""
  warmup = linear(end, peak, warmup_steps)
  return join(warmup, warmup_steps, cosine(peak, end, steps - warmup_steps))


def teacher_temperature(start, end, warmup_epochs):
  """Linear from `start` to `end` over the warm-up; a function of the epoch."""
  warmup = linear(start, end, warmup_epochs - 1)
  return join(warmup, warmup_epochs, lambda epoch: end)
