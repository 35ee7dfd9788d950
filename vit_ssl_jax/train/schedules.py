"""Schedules as tables: one float64 value a step, made once before training.

A table depends on the configured length of the run alone, so that a run
stopped early, or resumed, follows the same schedule as a whole one.
"""

import numpy as np

from vit_ssl_jax.errors import UserError


def cosine(start, end, steps):
  """Half a cosine from `start` towards `end`, which it would reach at `steps`.

  Returns:
    (steps,) float64.
  """
  return (
    end + (start - end) * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
  )


def pretrain_learning_rate(peak, end, steps, warmup_steps):
  """Linear from 0 to `peak`, reached at the last warm-up step, then a cosine.

  As in DINO (Caron et al., 2021, section 3.2).

  Returns:
    (steps,) float64.

  Raises:
    UserError: the warm-up is longer than the run.
  """
  check_warmup(steps, warmup_steps)
  warmup = np.linspace(0, peak, warmup_steps)
  return np.concatenate([warmup, cosine(peak, end, steps - warmup_steps)])


def finetune_learning_rate(peak, end, steps, warmup_steps):
  """Linear from `end` to `peak`, reached after the warm-up, then a cosine.

  The paper's code, but for a run without warm-up, whose first step it makes at
  `end` and this one at `peak`.

  Returns:
    (steps,) float64.

  Raises:
    UserError: the warm-up is longer than the run.
  """
  check_warmup(steps, warmup_steps)
  warmup = end + (peak - end) * np.arange(warmup_steps) / max(warmup_steps, 1)
  return np.concatenate([warmup, cosine(peak, end, steps - warmup_steps)])


def teacher_temperature(start, end, epochs, warmup_epochs):
  """Linear from `start` to `end` over the warm-up, epoch by epoch.

  Returns:
    (epochs,) float64; a run shorter than the warm-up sees its beginning.
  """
  warmup = np.linspace(start, end, warmup_epochs)[:epochs]
  return np.concatenate([warmup, np.full(epochs - len(warmup), float(end))])


def check_warmup(steps, warmup_steps):
  if warmup_steps >= steps:
    raise UserError(
      f"a warm-up of {warmup_steps} steps leaves nothing of a run of {steps}:"
      " optim.warmup_epochs has to be less than epochs"
    )
