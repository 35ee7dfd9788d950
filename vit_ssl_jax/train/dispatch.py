"""The jitted program of a run: fetches batches and runs one or more steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax import kernels
from vit_ssl_jax.parallel import mesh as meshes


def select_kernels(config, step, state, workdir=None):
  """Sets the kernels of a step; accelerators' are checked first."""
  if jax.default_backend() == "cpu":
    kernels.use(config.kernels)
  else:
    from vit_ssl_jax.train import kernel_checks

    kernel_checks.select(config, step, state, workdir)


def make_dispatch(config, source, step, shardings):
  """Builds the jitted function that fetches batches and runs steps.

  Returns:
    (state, the source's items, count) -> (state, metrics), which donates the
    state, and the largest count. Metrics are scalars if that is 1, else arrays
    of that many values, of which `count` are valid.
  """
  most = 1
  if source.placement == "device":
    # Batches are indices then, and the host of an accelerator seldom waits.
    on_cpu = jax.default_backend() == "cpu"
    most = config.steps_per_dispatch or (1 if on_cpu else 10)

  def one(state, arrays, item):
    return step(state, source.fetch(arrays, item))

  def several(state, arrays, items, count):
    def body(i, carry):
      state, values = carry
      state, new = one(state, arrays, items[i])
      return state, jax.tree.map(lambda v, x: v.at[i].set(x), values, new)

    _, shape = jax.eval_shape(one, state, arrays, items[0])
    values = jax.tree.map(lambda x: jnp.zeros(most, x.dtype), shape)
    return jax.lax.fori_loop(0, count, body, (state, values))

  program = jax.jit(
    one if most == 1 else several,
    donate_argnums=0,
    out_shardings=(shardings, None),
    compiler_options=meshes.compiler_options(jax.default_backend()),
  )

  def dispatch(state, items, count):
    if most == 1:
      return program(state, source.arrays, next(items))
    # The count is an argument, so that one program serves all counts.
    chosen = list(itertools.islice(items, count))
    chosen += chosen[:1] * (most - count)
    return program(state, source.arrays, np.stack(chosen), count)

  return dispatch, most
