"""Gradient accumulation: a batch in micro-batches, so that less memory is used.

Micro-batch j of n has the images j, j + n, j + 2n, …, so that the images that
lie on one device stay there. Results are those of the whole batch, to rounding.
"""

import jax
import jax.numpy as jnp
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


def norm(gradients):
  """The L2 norm of all gradients, and where they are not finite.

  Returns:
    (), and () int32, the number of the first tensor in the order of
    `jax.tree.leaves` that is not finite, or -1.
  """
  leaves = jax.tree.leaves(gradients)
  squares = jnp.stack([jnp.sum(jnp.square(x)) for x in leaves])
  broken = ~jnp.isfinite(squares)
  first = jnp.where(broken.any(), jnp.argmax(broken), -1)
  return jnp.sqrt(jnp.sum(squares)), first.astype(jnp.int32)


def step_or_skip(config, state, new_state, values):
  """The state after a step, which config.on_nonfinite = "skip" may leave out.

  Args:
    config: the run's.
    state, new_state: before and after.
    values: the step's metrics, with "loss" and "bad_tensor" (of `norm`).

  Returns:
    The new state; or the old one, one step later, where the loss or a gradient
    is not finite.
  """
  if config.on_nonfinite != "skip":
    return new_state
  good = jnp.isfinite(values["loss"]) & (values["bad_tensor"] < 0)
  kept = jax.tree.map(
    lambda new, old: jnp.where(good, new, old), new_state, state
  )
  return kept.replace(step=new_state.step)


def microbatched(function, accumulate_steps, accumulation):
  if accumulate_steps == 1:
    return function

  def whole_batch(params, batch):
    size = len(jax.tree.leaves(batch)[0]) // accumulate_steps
    return optax.microbatch(function, 1, size, accumulation)(params, batch)

  return whole_batch
