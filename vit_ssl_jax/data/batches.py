"""Training batches in an order fixed by (seed, epoch).

A set that fits lives on the device, and the jitted step gathers its batch by
index. A larger one stays in the host's memory, a yet larger one on disk, and
tf.data streams its batches. All give the same batches. B is the global batch,
over all hosts.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from vit_ssl_jax.data.rows import ranked
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel.mesh import batch_sharding, device_put_global


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a train step's batches come from: `fetch(arrays, item)`."""

  # The set on the device, or (); handed to the jitted step at every call.
  arrays: Any
  # Pure, for use inside jit: (arrays, item) -> {"image": (B, H, W, 3) uint8,
  # "label": (B,) int32}.
  fetch: Callable[[Any, Any], dict[str, jax.Array]]
  # items(t): the items of steps t, t + 1, ... without end.
  items: Callable[[int], Iterator[Any]]
  steps_per_epoch: int
  placement: str  # device, host or disk


def order(seed: int, epoch: int, size: int) -> np.ndarray:
  """A permutation of range(size), (size,) int32, fixed by (seed, epoch)."""
  # PCG64 by name: NumPy may change its default.
  bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
  return np.random.Generator(bits).permutation(size).astype(np.int32)


def steps_per_epoch(size: int, batch_size: int) -> int:
  """Whole batches in an epoch; the images left over wait for the next one.

  Raises:
    UserError: there is not one whole batch.
  """
  if not 1 <= batch_size <= size:
    raise UserError(
      f"batch_size is {batch_size}, but the training set has {size} images; "
      f"it must be from 1 to {size}."
    )
  return size // batch_size


def make_source(
  images: np.ndarray,
  labels: np.ndarray,
  batch_size: int,
  *,
  seed: int,
  mesh: Mesh,
  placement: str = "device",
  epoch_images: int | None = None,
  fingerprints: np.ndarray | None = None,
) -> Source:
  """Makes the source of training batches.

  Args:
    images: (N, H, W, 3) uint8, the same on every host; where they are a
      file's, only what is needed is read.
    labels: (N,) int32.
    batch_size: B, a multiple of the mesh's devices.
    seed: with the epoch, fixes the order.
    mesh: of `parallel.mesh`, over whose devices batches are sharded.
    placement: "device" (resident), "host" (streamed from memory) or "disk"
      (streamed from where the images are).
    epoch_images: how many images count as an epoch; None is N.
    fingerprints: (N,) uint64, by which the images are ranked before they are
      put in an epoch's order, so that it does not matter in which order they
      are stored; None leaves them as they are.

  Raises:
    UserError: B exceeds N.
  """
  steps = steps_per_epoch(len(images), batch_size)
  if epoch_images is not None:
    steps = steps_per_epoch(epoch_images, batch_size)
  rank = np.arange(len(images), dtype=np.int32)
  if fingerprints is not None:
    rank = ranked(labels, fingerprints)
  indices = functools.partial(epoch_indices, seed, rank, batch_size)
  sharding = batch_sharding(mesh)
  if placement == "device":
    data = {"image": np.asarray(images), "label": labels}
    return Source(
      arrays=device_put_global(
        data, dict.fromkeys(data, NamedSharding(mesh, P()))
      ),
      fetch=functools.partial(gather, sharding),
      items=lambda start: itertools.chain.from_iterable(indices(start)),
      steps_per_epoch=steps,
      placement=placement,
    )
  images = np.array(images) if placement == "host" else images
  data = {"image": images, "label": labels}
  rows = local_rows(sharding, batch_size)

  def items(start):
    for epoch in indices(start):
      for batch in stream(data, epoch[:, rows]):
        yield {
          key: jax.make_array_from_process_local_data(
            sharding, x, (batch_size, *x.shape[1:])
          )
          for key, x in batch.items()
        }

  return Source(
    arrays=(),
    fetch=lambda arrays, item: item,
    items=items,
    steps_per_epoch=steps,
    placement=placement,
  )


def epoch_indices(seed, rank, batch_size, start) -> Iterator[np.ndarray]:
  """One (steps, B) int32 array an epoch; the first begins at step `start`."""
  steps = steps_per_epoch(len(rank), batch_size)
  first, skipped = divmod(start, steps)
  for epoch in itertools.count(first):
    chosen = rank[order(seed, epoch, len(rank))[: steps * batch_size]]
    yield chosen.reshape(steps, batch_size)[skipped:]
    skipped = 0


def gather(sharding, arrays, index: jax.Array) -> dict[str, jax.Array]:
  """Rows `index`, (B,) int32, of the resident arrays."""
  # Sharded first, so that each device gathers only its own rows.
  index = jax.lax.with_sharding_constraint(index, sharding)
  batch = {k: jnp.take(x, index, 0, mode="clip") for k, x in arrays.items()}
  return jax.lax.with_sharding_constraint(batch, sharding)


def local_rows(sharding, batch_size: int) -> np.ndarray:
  """The rows of the global batch that this host's devices hold."""
  rows = np.arange(batch_size)
  parts = sharding.addressable_devices_indices_map(rows.shape).values()
  return np.unique(np.concatenate([rows[part] for part in parts]))


def stream(
  data: dict[str, np.ndarray], indices: np.ndarray
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of rows `indices`, (steps, B), gathered in parallel and ahead."""
  from vit_ssl_jax.data.tfds_sets import tensorflow

  tf = tensorflow()
  types = [tf.as_dtype(x.dtype) for x in data.values()]

  def rows(index):  # by NumPy: a tensor would be a second copy of the set
    return [np.asarray(x[index]) for x in data.values()]

  batches = tf.data.Dataset.from_tensor_slices(indices).map(
    lambda index: tf.numpy_function(rows, [index], types, stateful=False),
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
  for batch in batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
    yield dict(zip(data, batch, strict=True))
