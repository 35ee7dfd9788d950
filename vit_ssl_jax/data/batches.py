"""Training batches in an order fixed by (seed, epoch), and evaluation's.

A set that fits lives on the device, and the jitted step gathers its batch by
index. A larger one stays in the host's memory, a yet larger one on disk, and
its batches are streamed. All give the same batches. B is the global batch, over
all hosts.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from vit_ssl_jax.cli import UserError
from vit_ssl_jax.data import cache
from vit_ssl_jax.data.rows import ranked
from vit_ssl_jax.parallel import hosts

BATCH_AXES = ("data", "fsdp")
PLACEMENTS = ("device", "host", "disk")


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
  placement: str  # one of PLACEMENTS


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
  memory_share: float = 0.3,
  epoch_images: int | None = None,
  fingerprints: np.ndarray | None = None,
  mesh: Mesh | None = None,
  streamer: str = "tf",
) -> Source:
  """Makes the source of training batches.

  Args:
    images: (N, H, W, 3) uint8, the same on every host; where they are a
      file's, only what is needed is read.
    labels: (N,) int32.
    batch_size: B.
    seed: with the epoch, fixes the order.
    placement: "device" (resident), "host" (streamed from memory), "disk"
      (streamed from where the images are), or "auto", the first of them whose
      share suffices.
    memory_share: of a device's and of the host's memory that the images may
      take, for "auto".
    epoch_images: how many images count as an epoch; None is N.
    fingerprints: (N,) uint64, by which the images are ranked before they are
      put in an epoch's order, so that it does not matter in which order they
      are stored; None leaves them as they are.
    mesh: with axes "data" and "fsdp", over which batches are sharded; None is
      one device.
    streamer: what streams: "tf" (tf.data) or "threads" (no TensorFlow).

  Raises:
    UserError: B exceeds N or cannot be split evenly over the mesh, or
      placement or streamer is none of these.
  """
  steps = steps_per_epoch(len(images), batch_size)
  if placement not in ("auto", *PLACEMENTS):
    raise UserError(
      f'placement is "{placement}"; it must be auto, device, host or disk.'
    )
  if streamer not in ("tf", "threads"):
    raise UserError(f'streamer is "{streamer}"; it must be tf or threads.')
  if mesh is not None and batch_size % mesh.size:
    raise UserError(
      f"batch_size is {batch_size}, which cannot be split evenly over "
      f"{mesh.size} devices."
    )
  if placement == "auto":
    # Hosts may differ in memory, but not in where they keep the images.
    own = PLACEMENTS.index(_place(images.nbytes, memory_share, mesh))
    placement = PLACEMENTS[max(hosts.gather(own))]
  if epoch_images is not None:
    steps = steps_per_epoch(epoch_images, batch_size)
  sharding = None if mesh is None else NamedSharding(mesh, P(BATCH_AXES))
  rank = np.arange(len(images), dtype=np.int32)
  if fingerprints is not None:
    rank = ranked(labels, fingerprints)
  indices = functools.partial(_indices, seed, rank, batch_size)
  if placement == "device":
    data = {"image": np.asarray(images), "label": labels}
    return Source(
      arrays=_replicate(data, mesh),
      fetch=functools.partial(_gather, sharding),
      items=lambda start: itertools.chain.from_iterable(indices(start)),
      steps_per_epoch=steps,
      placement=placement,
    )
  if placement == "host":
    images = np.array(images)
  data = {"image": images, "label": labels}
  stream = _tf_stream if streamer == "tf" else _thread_stream
  rows = _local_rows(sharding, batch_size)

  def items(start):
    passes = (batches[:, rows] for batches in indices(start))
    for batch in stream(data, passes):
      yield _put(batch, sharding, batch_size)

  return Source(
    arrays=(),
    fetch=lambda arrays, item: item,
    items=items,
    steps_per_epoch=steps,
    placement=placement,
  )


def _indices(
  seed: int, rank: np.ndarray, batch_size: int, start: int
) -> Iterator[np.ndarray]:
  """One (steps, B) int32 array a pass; the first begins at step `start`."""
  steps = steps_per_epoch(len(rank), batch_size)
  first, skipped = divmod(start, steps)
  for epoch in itertools.count(first):
    chosen = rank[order(seed, epoch, len(rank))[: steps * batch_size]]
    yield chosen.reshape(steps, batch_size)[skipped:]
    skipped = 0


def _place(nbytes: int, share: float, mesh: Mesh | None) -> str:
  """The first place of which `nbytes` take at most `share`."""
  devices = jax.local_devices() if mesh is None else mesh.local_devices
  if nbytes <= share * _memory(devices):
    return "device"
  return "host" if nbytes <= share * cache.memory() else "disk"


def _memory(devices: list[jax.Device]) -> float:
  """Bytes that one device has."""
  stats = devices[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"]
  # CPU devices report none and share the host's.
  return cache.memory() / len(devices)


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
  data: dict[str, np.ndarray], passes: Iterator[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
  """One tf.data pipeline a pass, which gathers in parallel and ahead."""
  from vit_ssl_jax.data.tfds_sets import tensorflow

  tf = tensorflow()
  types = [tf.as_dtype(x.dtype) for x in data.values()]

  def gather(index):  # by NumPy: a tensor would be a second copy of the set
    return [np.asarray(x[index]) for x in data.values()]

  for indices in passes:
    batches = tf.data.Dataset.from_tensor_slices(indices)
    batches = batches.map(
      lambda index: tf.numpy_function(gather, [index], types, stateful=False),
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    for batch in batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
      yield dict(zip(data, batch, strict=True))


def _thread_stream(
  data: dict[str, np.ndarray], passes: Iterator[np.ndarray], ahead: int = 2
) -> Iterator[dict[str, np.ndarray]]:
  """The same from one thread, which stays `ahead` batches ahead."""

  def gather(index):
    return {key: np.asarray(x[index]) for key, x in data.items()}

  with futures.ThreadPoolExecutor(1) as pool:
    pending = collections.deque()
    for index in itertools.chain.from_iterable(passes):
      pending.append(pool.submit(gather, index))
      if len(pending) > ahead:
        yield pending.popleft().result()
