"""Training batches in an order fixed by (seed, epoch), and evaluation's.

A set that fits lives on the device, and the jitted step gathers its batch by
index. Any other stays in host memory, and its batches are streamed. Both give
the same batches. B is the global batch, over all hosts.
"""

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from vit_ssl_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")
RESIDENT_SHARE = 0.3  # of a device's memory; the rest is the model's


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


def padded_batches(
  images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Every image exactly once, in order, in batches of one shape.

  Yields:
    image (B, H, W, 3), label (B,) and mask (B,) bool; the last batch is filled
    up with zeros, where mask is False.
  """
  for start in range(0, len(images), batch_size):
    batch = {
      "image": images[start : start + batch_size],
      "label": labels[start : start + batch_size],
    }
    count = len(batch["image"])
    batch["mask"] = np.ones((count,), bool)
    yield {key: _fill(x, batch_size - count) for key, x in batch.items()}


def _fill(x: np.ndarray, count: int) -> np.ndarray:
  return np.pad(x, [(0, count)] + [(0, 0)] * (x.ndim - 1)) if count else x


def make_source(
  images: np.ndarray,
  labels: np.ndarray,
  batch_size: int,
  *,
  seed: int,
  placement: str = "auto",
  mesh: Mesh | None = None,
  streamer: str = "tf",
) -> Source:
  """Makes the source of training batches.

  Args:
    images: (N, H, W, 3) uint8, the same on every host.
    labels: (N,) int32.
    batch_size: B.
    seed: with the epoch, fixes the order.
    placement: "device" (resident), "host" (streamed), or "auto": resident if
      the images take at most `RESIDENT_SHARE` of a device's memory.
    mesh: with axes "data" and "fsdp", over which batches are sharded; None is
      one device.
    streamer: what streams: "tf" (tf.data) or "threads" (no TensorFlow).

  Raises:
    UserError: B exceeds N or cannot be split evenly over the mesh, or
      placement or streamer is none of these.
  """
  steps = steps_per_epoch(len(images), batch_size)
  if placement not in ("auto", "device", "host"):
    raise UserError(
      f'placement is "{placement}"; it must be auto, device or host.'
    )
  if streamer not in ("tf", "threads"):
    raise UserError(f'streamer is "{streamer}"; it must be tf or threads.')
  if mesh is not None and batch_size % mesh.size:
    raise UserError(
      f"batch_size is {batch_size}, which cannot be split evenly over "
      f"{mesh.size} devices."
    )
  sharding = None if mesh is None else NamedSharding(mesh, P(BATCH_AXES))
  data = {"image": images, "label": labels}
  indices = functools.partial(_indices, seed, len(images), batch_size)
  if _resident(images.nbytes, placement, mesh):
    return Source(
      arrays=_replicate(data, mesh),
      fetch=functools.partial(_gather, sharding),
      items=lambda start: itertools.chain.from_iterable(indices(start)),
      steps_per_epoch=steps,
    )
  stream = _tf_stream if streamer == "tf" else _thread_stream
  rows = _local_rows(sharding, batch_size)

  def items(start):
    epochs = (epoch[:, rows] for epoch in indices(start))
    for batch in stream(data, epochs):
      yield _put(batch, sharding, batch_size)

  return Source(
    arrays=(),
    fetch=lambda arrays, item: item,
    items=items,
    steps_per_epoch=steps,
  )


def _indices(
  seed: int, size: int, batch_size: int, start: int
) -> Iterator[np.ndarray]:
  """One (steps, B) int32 array an epoch; the first begins at step `start`."""
  steps = steps_per_epoch(size, batch_size)
  first, skipped = divmod(start, steps)
  for epoch in itertools.count(first):
    chosen = order(seed, epoch, size)[: steps * batch_size]
    yield chosen.reshape(steps, batch_size)[skipped:]
    skipped = 0


def _resident(nbytes: int, placement: str, mesh: Mesh | None) -> bool:
  if placement == "auto":
    devices = jax.local_devices() if mesh is None else mesh.local_devices
    resident = nbytes <= RESIDENT_SHARE * _memory(devices)
  else:
    resident = placement == "device"
  logging.info(
    "Training images: %.1f MB, %s.",
    nbytes / 1e6,
    "kept on the device" if resident else "streamed from the host",
  )
  return resident


def _memory(devices: list[jax.Device]) -> float:
  """Bytes that one device has."""
  stats = devices[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"]
  # CPU devices report none and share the host's.
  host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return host / len(devices)


def _replicate(tree: Any, mesh: Mesh | None) -> Any:
  if mesh is None:
    return jax.device_put(tree)
  # Every host has the whole: no need to send it around.
  sharding = NamedSharding(mesh, P())
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__),
    tree,
  )


def _gather(sharding, arrays, index: jax.Array) -> dict[str, jax.Array]:
  """Rows `index`, (B,) int32, of the resident arrays."""
  if sharding is not None:
    # Sharded first, so that each device gathers only its own rows.
    index = jax.lax.with_sharding_constraint(index, sharding)
  batch = {k: jnp.take(x, index, 0, mode="clip") for k, x in arrays.items()}
  if sharding is not None:
    batch = jax.lax.with_sharding_constraint(batch, sharding)
  return batch


def _local_rows(sharding, batch_size: int) -> np.ndarray:
  """The rows of the global batch that this host's devices hold."""
  rows = np.arange(batch_size)
  if sharding is None:
    return rows
  parts = sharding.addressable_devices_indices_map(rows.shape).values()
  return np.unique(np.concatenate([rows[part] for part in parts]))


def _put(batch: dict[str, np.ndarray], sharding, batch_size: int) -> Any:
  """This host's rows -> the global batch on the devices."""
  if sharding is None:
    return jax.device_put(batch)
  return {
    key: jax.make_array_from_process_local_data(
      sharding, x, (batch_size, *x.shape[1:])
    )
    for key, x in batch.items()
  }


def _tf_stream(
  data: dict[str, np.ndarray], epochs: Iterator[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
  """One tf.data pipeline an epoch, which gathers in parallel and ahead."""
  from vit_ssl_jax.data.tfds_sets import tensorflow

  tf = tensorflow()
  tensors = {key: tf.convert_to_tensor(x) for key, x in data.items()}
  for indices in epochs:
    batches = tf.data.Dataset.from_tensor_slices(indices)
    batches = batches.map(
      lambda index: {k: tf.gather(x, index) for k, x in tensors.items()},
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    yield from batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _thread_stream(
  data: dict[str, np.ndarray], epochs: Iterator[np.ndarray], ahead: int = 2
) -> Iterator[dict[str, np.ndarray]]:
  """The same from one thread, which stays `ahead` batches ahead."""

  def gather(index):
    return {key: x[index] for key, x in data.items()}

  with futures.ThreadPoolExecutor(1) as pool:
    pending = collections.deque()
    for index in itertools.chain.from_iterable(epochs):
      pending.append(pool.submit(gather, index))
      if len(pending) > ahead:
        yield pending.popleft().result()
