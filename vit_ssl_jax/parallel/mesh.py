"""The device mesh and the shardings of batches and parameters.

The mesh has the axes "data" and "fsdp". Batches are sharded over both;
parameters and optimizer state are replicated over "data" and, with fsdp above
1, sharded over "fsdp" (fully sharded data parallelism, Zhao et al., 2023).
"""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from vit_ssl_jax.errors import UserError

SMALLEST = 2**12  # elements of a tensor that is worth sharding


def make_mesh(fsdp, batch_size, accumulate_steps=1):
  """Builds a mesh of (devices / fsdp, fsdp) over all devices.

  Args:
    fsdp: number of parameter shards.
    batch_size: global batch size.
    accumulate_steps: micro-batches of a batch.

  Raises:
    UserError: fsdp does not divide the devices, or the devices do not divide
      the batch or its micro-batches.
  """
  devices = jax.device_count()
  if fsdp < 1 or devices % fsdp:
    raise UserError(
      f"mesh.fsdp={fsdp} does not divide the {devices} devices: possible are"
      f" the divisors of {devices}"
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
  return mesh_of((1, 1), jax.devices()[:1])


def mesh_of(shape, devices):
  return jax.make_mesh(
    shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def compiler_options(platform):
  """Returns XLA's options for a training step on a platform, or None.

  XLA for GPUs would merge products of global and local views and copy operands:
  without, ViT's pretraining moves an estimated 0.92 times the bytes (H100).
  """
  return {"xla_gpu_dot_merger_threshold_mb": 0} if platform == "gpu" else None


def batch_sharding(mesh):
  """Shards the first axis over all devices."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def all_gather_params(mesh):
  """Returns the all-gather for FSDP-sharded parameters.

  Their gradients are reduced over all devices. Left to itself, XLA would split
  the layers instead and move the batch's activations between devices. Without
  FSDP, or with mesh None, it is the identity.
  """
  if mesh is None or mesh.shape["fsdp"] == 1:
    return lambda params: params
  return lambda params: jax.lax.with_sharding_constraint(
    params, NamedSharding(mesh, P())
  )


def device_put_global(tree, shardings):
  """Shards a pytree of arrays that every process holds whole."""
  return jax.tree.map(
    lambda x, s: jax.make_array_from_callback(x.shape, s, x.__getitem__),
    jax.device_get(tree),
    shardings,
  )


def state_sharding(mesh, state):
  """Returns shardings along each tensor's longest axis that fsdp divides."""
  ways = mesh.shape["fsdp"]

  def sharding(leaf):
    axes = [i for i, n in enumerate(leaf.shape) if n % ways == 0 and n >= ways]
    if ways == 1 or leaf.size < SMALLEST or not axes:
      return NamedSharding(mesh, P())
    longest = max(axes, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, P(*[None] * longest, "fsdp"))

  return jax.tree.map(sharding, state)
