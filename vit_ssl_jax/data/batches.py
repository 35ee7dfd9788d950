"""Training batches in an order fixed by (seed, epoch), wherever images lie.

B is the global batch size, over all hosts.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from vit_ssl_jax.data import cache
from vit_ssl_jax.data.splits import ranked
from vit_ssl_jax.data.tfds_sets import tensorflow
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts
from vit_ssl_jax.parallel.mesh import batch_sharding, device_put_global

PLACEMENTS = {
  "device": "kept on the device",
  "host": "kept in memory and streamed",
  "disk": "streamed from disk",
}


@dataclasses.dataclass(frozen=True)
class Source:
  """Training batches: step t's is `fetch(arrays, next(items(t)))`."""

  # The dataset on the device, or (); an argument of the jitted step.
  arrays: Any
  # Pure, inside jit: (arrays, item) -> {"image": (B, H, W, 3) uint8, "label":
  # (B,) int32}.
  fetch: Callable[[Any, Any], dict[str, jax.Array]]
  # Endless: the items of steps t, t + 1, ...
  items: Callable[[int], Iterator[Any]]
  steps_per_epoch: int
  placement: str  # one of `PLACEMENTS`


def order(seed, epoch, size):
  """A permutation of range(size), (size,) int32, fixed by (seed, epoch)."""
  # PCG64 by name: NumPy may change its default.
  bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
  return np.random.Generator(bits).permutation(size).astype(np.int32)


def steps_per_epoch(size, batch_size):
  """Whole batches in an epoch; the images left over wait for the next one."""
  if not 1 <= batch_size <= size:
    raise UserError(
      f"batch_size must be from 1 to {size} (training images), not {batch_size}"
    )
  return size // batch_size


def make_source(
  images,
  labels,
  batch_size,
  *,
  seed,
  mesh,
  placement="device",
  epoch_images=None,
  fingerprints=None,
) -> Source:
  """Training batches of images (N, H, W, 3) and labels (N,).

  `epoch_images` is the number of images that count as an epoch, N by default.
  With `fingerprints`, (N,) uint64, images are ranked by content first, so that
  the order in which they are stored does not matter.
  """
  steps_per_epoch(len(images), batch_size)
  if fingerprints is None:
    rank = np.arange(len(images), dtype=np.int32)
  else:
    rank = ranked(labels, fingerprints)
  indices = functools.partial(epoch_indices, seed, rank, batch_size)
  make = resident if placement == "device" else streamed
  if placement == "host":
    images = np.array(images)
  arrays, fetch, items = make(images, labels, batch_size, indices, mesh)
  steps = steps_per_epoch(epoch_images or len(images), batch_size)
  return Source(arrays, fetch, items, steps, placement)


def epoch_indices(seed, rank, batch_size, start):
  """Yields (steps, B) int32 indices per epoch; the first begins at a step."""
  steps = steps_per_epoch(len(rank), batch_size)
  first, skipped = divmod(start, steps)
  for epoch in itertools.count(first):
    rows = rank[order(seed, epoch, len(rank))[: steps * batch_size]]
    yield rows.reshape(steps, batch_size)[skipped:]
    skipped = 0


def resident(images, labels, batch_size, indices, mesh):
  """Arrays, fetch and items of a dataset on the device."""
  data = {"image": np.asarray(images), "label": labels}
  replicated = dict.fromkeys(data, NamedSharding(mesh, P()))
  sharding = batch_sharding(mesh)

  def fetch(arrays, index):
    # Sharded first, so that each device gathers only its own rows.
    index = jax.lax.with_sharding_constraint(index, sharding)
    batch = {k: jnp.take(x, index, 0, mode="clip") for k, x in arrays.items()}
    return jax.lax.with_sharding_constraint(batch, sharding)

  def items(start):
    return itertools.chain.from_iterable(indices(start))

  return device_put_global(data, replicated), fetch, items


def streamed(images, labels, batch_size, indices, mesh):
  """Arrays, fetch and items of a dataset in host memory or on disk."""
  sharding = batch_sharding(mesh)
  data = {"image": images, "label": labels}
  # Rows of the global batch that this host's devices hold.
  rows = np.arange(batch_size)
  parts = sharding.addressable_devices_indices_map(rows.shape).values()
  rows = np.unique(np.concatenate([rows[part] for part in parts]))

  def items(start):
    for epoch in indices(start):
      for batch in stream(data, epoch[:, rows]):
        yield {
          key: jax.make_array_from_process_local_data(
            sharding, x, (batch_size, *x.shape[1:])
          )
          for key, x in batch.items()
        }

  return (), lambda arrays, item: item, items


def stream(data, indices):
  """Yields batches of rows `indices`, (steps, B), gathered in parallel."""
  tf = tensorflow()
  types = [tf.as_dtype(x.dtype) for x in data.values()]

  def rows(index):  # by NumPy: a tensor would be a second copy of the dataset
    return [np.asarray(x[index]) for x in data.values()]

  batches = tf.data.Dataset.from_tensor_slices(indices).map(
    lambda index: tf.numpy_function(rows, [index], types, stateful=False),
    num_parallel_calls=tf.data.AUTOTUNE,
    deterministic=True,
  )
  for batch in batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
    yield dict(zip(data, batch, strict=True))


def auto_placement(nbytes, share, mesh):
  """The first of `PLACEMENTS` with room in `share` of its memory; all hosts
  agree."""
  devices = mesh.local_devices
  stats = devices[0].memory_stats() or {}
  # CPU devices report none and share the host's.
  limit = stats.get("bytes_limit") or cache.memory() / len(devices)
  if nbytes <= share * limit:
    index = 0
  else:
    index = 1 if nbytes <= share * cache.memory() else 2
  return list(PLACEMENTS)[max(hosts.all_gather(index))]
