"""Batches: one order for both placements, from any step, on any mesh."""

import itertools
import types

import jax
import numpy as np
import pytest

from vit_ssl_jax.data import batches, cache
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel.mesh import mesh_of, one_device_mesh

SIZE, BATCH = 22, 4

PLACES = ["device", "host"]


@pytest.fixture
def images():
  return np.random.default_rng(0).integers(0, 256, (SIZE, 4, 4, 3), np.uint8)


@pytest.fixture
def labels():
  return np.arange(SIZE, dtype=np.int32)


def take(source, start, count):
  """The batches of `count` steps, fetched inside jit."""
  fetch = jax.jit(source.fetch)
  items = source.items(start)
  got = [
    jax.device_get(fetch(source.arrays, item))
    for item in itertools.islice(items, count)
  ]
  items.close() if hasattr(items, "close") else None
  return got


def mesh():
  """All devices; both axes are used where there are two or four of them."""
  count = len(jax.devices())
  shape = (2, 2) if count >= 4 else (1, min(count, 2))
  return mesh_of(shape, jax.devices()[: shape[0] * shape[1]])


def test_order_is_fixed_by_seed_and_epoch():
  first = batches.order(3, 5, 100)
  assert first.dtype == np.int32
  assert sorted(first) == list(range(100))
  np.testing.assert_array_equal(first, batches.order(3, 5, 100))
  for other in (batches.order(3, 6, 100), batches.order(4, 5, 100)):
    assert (first != other).any()
  # Pinned: a run resumed under another version must go on in the same order.
  assert batches.order(0, 0, 8).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]


def test_steps_per_epoch_drops_the_last_images():
  assert batches.steps_per_epoch(SIZE, BATCH) == 5
  assert batches.steps_per_epoch(SIZE, SIZE) == 1
  for bad in (SIZE + 1, 0, -4):
    with pytest.raises(
      UserError, match=rf"batch_size must be from 1 to {SIZE}.* {bad}$"
    ):
      batches.steps_per_epoch(SIZE, bad)


@pytest.mark.parametrize("placement", PLACES)
@pytest.mark.parametrize("sharded", [False, True])
def test_batches_follow_the_order(images, labels, placement, sharded):
  source = batches.make_source(
    images,
    labels,
    BATCH,
    seed=1,
    placement=placement,
    mesh=mesh() if sharded else one_device_mesh(),
  )
  assert source.steps_per_epoch == 5
  got = take(source, 0, 12)  # more than two epochs
  for step, batch in enumerate(got):
    epoch, position = divmod(step, 5)
    index = batches.order(1, epoch, SIZE)[position * BATCH :][:BATCH]
    np.testing.assert_array_equal(batch["label"], labels[index])
    np.testing.assert_array_equal(batch["image"], images[index])
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
  for start in (3, 5, 7):
    for want, have in zip(got[start:], take(source, start, 5), strict=False):
      np.testing.assert_array_equal(have["image"], want["image"])


@pytest.mark.parametrize("placement", PLACES)
def test_batches_are_sharded_over_the_mesh(images, labels, placement):
  devices = mesh()
  source = batches.make_source(
    images, labels, BATCH, seed=0, placement=placement, mesh=devices
  )
  items = source.items(0)
  batch = jax.jit(source.fetch)(source.arrays, next(items))
  for x in batch.values():
    assert x.addressable_shards[0].data.shape[0] == BATCH // devices.size
    assert len(x.addressable_shards) == devices.size
  for x in jax.tree.leaves(source.arrays):
    assert x.is_fully_replicated


def test_auto_is_the_first_place_whose_share_suffices(monkeypatch):
  monkeypatch.setattr(cache, "memory", lambda: 800)
  for stats in ({"bytes_limit": 400}, None):  # CPU devices share the host's
    device = types.SimpleNamespace(memory_stats=lambda stats=stats: stats)
    devices = types.SimpleNamespace(local_devices=[device] * 2)
    found = [
      batches.auto_placement(n, 0.5, devices) for n in (200, 201, 400, 401)
    ]
    assert found == ["device", "host", "host", "disk"]


def test_from_disk_only_batches_are_read(images, labels):
  class OnDisk(cache.Rows):
    def __array__(self, dtype=None, copy=None):
      raise MemoryError("all of it")

  index = np.arange(SIZE)[::2]
  stored = OnDisk(images, index)

  def source(placement):
    return batches.make_source(
      stored, labels[index], BATCH, seed=0, placement=placement,
      mesh=one_device_mesh(),
    )  # fmt: skip

  got = take(source("disk"), 0, 2)
  for step, batch in enumerate(got):
    order = batches.order(0, 0, len(index))[step * BATCH :][:BATCH]
    np.testing.assert_array_equal(batch["image"], images[index[order]])
  for placement in ("host", "device"):
    with pytest.raises(MemoryError, match="all of it"):
      source(placement)
