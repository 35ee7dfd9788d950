"""One mesh for everything: batches over all devices, parameters as configured.

The mesh has the axes "data" and "fsdp". A batch is sharded over both;
parameters and optimizer state are replicated over "data" and, with fsdp above
1, sharded over "fsdp" (fully sharded data parallelism, Zhao et al., 2023).
"""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from vit_ssl_jax.errors import UserError

SMALLEST = 2**12  # elements; sharding less costs more than it saves


def make_mesh(fsdp, batch_size, accumulate_steps=1):
  """A mesh of (devices / fsdp, fsdp) over the axes ("data", "fsdp").

  Args:
    fsdp: over how many devices parameters are sharded.
    batch_size: of all devices together.
    accumulate_steps: how many micro-batches a batch has.

  Raises:
    UserError: the devices do not divide the batch or its micro-batches, or
      fsdp does not divide the devices.
  """
  devices = jax.device_count()
  if fsdp < 1 or devices % fsdp:
    raise UserError(
      f"mesh.fsdp={fsdp} does not divide the {devices} devices: give a divisor"
      f" of {devices}"
    )
  if batch_size < 1 or batch_size % devices:
    raise UserError(
      f"batch_size={batch_size} is not a multiple of the {devices} devices"
    )
  if batch_size % (devices * accumulate_steps):
    raise UserError(
      f"accumulate_steps={accumulate_steps} does not divide the"
      f" {batch_size // devices} images of a batch on each device"
    )
  return mesh_of((devices // fsdp, fsdp), jax.devices())


def one_device_mesh():
  """A mesh of the first device alone."""
  return mesh_of((1, 1), jax.devices()[:1])


def mesh_of(shape, devices):
  return jax.make_mesh(
    shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def compiler_options(platform):
  """XLA's options for steps, a dict or None; platform is as "gpu".

  XLA for GPUs would put the products of both sizes of views into one, with
  copies of their operands. By an estimate for an H100, ViT's pretraining step
  reads and writes 0.92 as many bytes without.
  """
  return {"xla_gpu_dot_merger_threshold_mb": 0} if platform == "gpu" else None


def batch_sharding(mesh):
  """The first axis over all devices."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def all_gather_params(mesh):
  """Makes what parameters go through where a step uses them (FSDP).

  On a mesh with fsdp above 1 they are all-gathered, and their gradients reduced
  over all devices; XLA would split the layers instead, and move the tokens of
  the whole batch between the devices.

  Args:
    mesh: a mesh of `make_mesh`, or None for one device.

  Returns:
    (pytree of arrays) -> the same.
  """
  if mesh is None or mesh.shape["fsdp"] == 1:
    return lambda params: params
  return lambda params: jax.lax.with_sharding_constraint(
    params, NamedSharding(mesh, P())
  )


def device_put_global(tree, shardings):
  """Puts what every process has whole on the devices.

  Args:
    tree: a pytree of arrays.
    shardings: a pytree of NamedSharding, for each of them.
  """
  return jax.tree.map(
    lambda x, s: jax.make_array_from_callback(x.shape, s, x.__getitem__),
    jax.device_get(tree),
    shardings,
  )


def state_sharding(mesh, state):
  """A sharding for each leaf of a state: its longest axis that fsdp divides.

  Args:
    mesh: a mesh of `make_mesh`.
    state: a pytree of arrays or of their shapes.

  Returns:
    A pytree of NamedSharding.
  """
  ways = mesh.shape["fsdp"]

  def spec(leaf):
    axes = [i for i, n in enumerate(leaf.shape) if n % ways == 0 and n >= ways]
    if ways == 1 or leaf.size < SMALLEST or not axes:
      return NamedSharding(mesh, P())
    longest = max(axes, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, P(*[None] * longest, "fsdp"))

  return jax.tree.map(spec, state)
