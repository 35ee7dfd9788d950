"""Gradient accumulation: a batch in micro-batches, so that less memory is used.

Micro-batch j of n has the images j, j + n, j + 2n, …, so that the images that
lie on one device stay there. Results are those of the whole batch, to rounding.
"""

import jax
import optax
from optax.microbatching import AccumulationType


def averaged(loss_fn, accumulate_steps):
  """`jax.value_and_grad` of a mean over the batch, by micro-batches.

  Args:
    loss_fn: (params, batch) -> (loss, dict of scalars), means over the batch.
    accumulate_steps: how many micro-batches; it divides the batch.

  Returns:
    (params, batch) -> ((loss, dict of scalars), gradients); a batch is a pytree
    of (B, ...).
  """
  return microbatched(
    jax.value_and_grad(loss_fn, has_aux=True),
    accumulate_steps,
    AccumulationType.MEAN,
  )


def concatenated(function, accumulate_steps):
  """A function (params, batch) -> (B, ...), by micro-batches."""
  return microbatched(function, accumulate_steps, AccumulationType.CONCAT)


def microbatched(function, accumulate_steps, accumulation):
  if accumulate_steps == 1:
    return function

  def whole_batch(params, batch):
    size = len(jax.tree.leaves(batch)[0]) // accumulate_steps
    return optax.microbatch(function, 1, size, accumulation)(params, batch)

  return whole_batch
