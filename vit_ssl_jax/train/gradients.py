"""Gradient accumulation, gradient norms, and skipping of non-finite steps.

Micro-batch j of n has the images j, j + n, j + 2n, …, so that images stay on
their device. Results equal those of the whole batch up to rounding.
"""

import jax
import jax.numpy as jnp
import optax
from optax.microbatching import AccumulationType


def averaged(loss_fn, accumulate_steps):
  """`jax.value_and_grad` with gradient accumulation.

  Args:
    loss_fn: (params, batch) -> (loss, dict of scalars), means over the batch.
    accumulate_steps: number of micro-batches; divides the batch.

  Returns:
    (params, batch) -> ((loss, dict of scalars), gradients).
  """
  function = jax.value_and_grad(loss_fn, has_aux=True)
  return microbatched(function, accumulate_steps, AccumulationType.MEAN)


def concatenated(function, accumulate_steps):
  """(params, batch) -> (B, ...) by micro-batches."""
  return microbatched(function, accumulate_steps, AccumulationType.CONCAT)


def microbatched(function, accumulate_steps, accumulation):
  if accumulate_steps == 1:
    return function

  def whole_batch(params, batch):
    size = len(jax.tree.leaves(batch)[0]) // accumulate_steps
    return optax.microbatch(function, 1, size, accumulation)(params, batch)

  return whole_batch


def norm(gradients):
  """Returns the global norm, and the first non-finite leaf's index or -1."""
  norms = jnp.stack([optax.tree.norm(x) for x in jax.tree.leaves(gradients)])
  bad = ~jnp.isfinite(norms)
  index = jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)
  return optax.tree.norm(norms), index


def step_or_skip(config, state, new_state, values):
  """Keeps the old state of a non-finite step if config.on_nonfinite is "skip".

  Unlike `optax.apply_if_finite`, it also keeps teacher and centre, and checks
  the loss. `values` are the step's metrics: "loss" and "bad_tensor".
  """
  if config.on_nonfinite != "skip":
    return new_state
  good = jnp.isfinite(values["loss"]) & (values["bad_tensor"] < 0)
  state = jax.tree.map(
    lambda new, old: jnp.where(good, new, old), new_state, state
  )
  return state.replace(step=new_state.step)


def finish(config, state, new_state, grads, values):
  """Returns the state after a step, and its metrics with the gradient norm."""
  total, bad_tensor = norm(grads)
  values = values | {"gradient_norm": total, "bad_tensor": bad_tensor}
  return step_or_skip(config, state, new_state, values), values
