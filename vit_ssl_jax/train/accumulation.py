"""A batch in parts, one after the other, so that less memory is needed.

Part j of n has the images j, j + n, j + 2n, …, so that the images that lie on
one device stay there.
"""

import jax
import jax.numpy as jnp


def parts_of(batch, count):
  """(B, ...) arrays of a pytree -> (count, B / count, ...)."""

  def split(x):
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(split, batch)


def outputs(function, batch, count):
  """Outputs for a whole batch, computed part by part.

  Args:
    function: (batch of any size) -> a pytree of (B, ...), row by row.
    batch: a pytree of arrays (B, ...).
    count: how many parts; it divides B.

  Returns:
    The pytree of (B, ...).
  """
  if count == 1:
    return function(batch)

  def join(x):
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

  return jax.tree.map(join, jax.lax.map(function, parts_of(batch, count)))


def gradients(loss_fn, params, batch, count):
  """Loss and gradients of a whole batch, summed up part by part.

  Args:
    loss_fn: (params, batch of any size) -> (loss, pytree of scalars), all of
      them means over the batch.
    params: a pytree.
    batch: a pytree of arrays (B, ...).
    count: how many parts; it divides B.

  Returns:
    ((loss, pytree of scalars), gradients), as of `jax.value_and_grad`.
  """
  grad = jax.value_and_grad(loss_fn, has_aux=True)
  if count == 1:
    return grad(params, batch)

  def add(total, part):
    return jax.tree.map(jnp.add, total, grad(params, part)), None

  parts = parts_of(batch, count)
  shape = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parts))
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
  total, _ = jax.lax.scan(add, zero, parts)
  return jax.tree.map(lambda x: x / count, total)
