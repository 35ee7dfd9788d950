"""Batches: one order for both placements, from any step, on any mesh."""

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from vit_ssl_jax import data
from vit_ssl_jax.cli import UserError
from vit_ssl_jax.data import batches, cache, rows

SIZE, BATCH = 22, 4

PLACES = [("device", "tf"), ("host", "threads"), ("host", "tf")]


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
  return jax.make_mesh(
    shape,
    ("data", "fsdp"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[: shape[0] * shape[1]],
  )


def test_order_is_fixed_by_seed_and_epoch():
  first = data.order(3, 5, 100)
  assert first.dtype == np.int32
  assert sorted(first) == list(range(100))
  np.testing.assert_array_equal(first, data.order(3, 5, 100))
  for other in (data.order(3, 6, 100), data.order(4, 5, 100)):
    assert (first != other).any()
  # Pinned: a run resumed under another version must go on in the same order.
  assert data.order(0, 0, 8).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]


def test_steps_per_epoch_drops_the_last_images():
  assert data.steps_per_epoch(SIZE, BATCH) == 5
  assert data.steps_per_epoch(SIZE, SIZE) == 1
  for bad in (SIZE + 1, 0, -4):
    with pytest.raises(UserError, match=rf"batch_size is {bad}.*{SIZE} images"):
      data.steps_per_epoch(SIZE, bad)


@pytest.mark.parametrize(("placement", "streamer"), PLACES)
@pytest.mark.parametrize("sharded", [False, True])
def test_batches_follow_the_order(images, labels, placement, streamer, sharded):
  source = data.make_source(
    images,
    labels,
    BATCH,
    seed=1,
    placement=placement,
    streamer=streamer,
    mesh=mesh() if sharded else None,
  )
  assert source.steps_per_epoch == 5
  got = take(source, 0, 12)  # more than two epochs
  for step, batch in enumerate(got):
    epoch, position = divmod(step, 5)
    index = data.order(1, epoch, SIZE)[position * BATCH :][:BATCH]
    np.testing.assert_array_equal(batch["label"], labels[index])
    np.testing.assert_array_equal(batch["image"], images[index])
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
  for start in (3, 5, 7):
    for want, have in zip(got[start:], take(source, start, 5), strict=False):
      np.testing.assert_array_equal(have["image"], want["image"])


@pytest.mark.parametrize(("placement", "streamer"), PLACES)
def test_batches_are_sharded_over_the_mesh(images, labels, placement, streamer):
  devices = mesh()
  source = data.make_source(
    images,
    labels,
    BATCH,
    seed=0,
    placement=placement,
    streamer=streamer,
    mesh=devices,
  )
  items = source.items(0)
  batch = jax.jit(source.fetch)(source.arrays, next(items))
  for x in batch.values():
    assert x.addressable_shards[0].data.shape[0] == BATCH // devices.size
    assert len(x.addressable_shards) == devices.size
  for x in jax.tree.leaves(source.arrays):
    assert x.is_fully_replicated


def test_auto_is_the_first_place_whose_share_suffices(
  images, labels, monkeypatch
):
  def source(share):
    return data.make_source(images, labels, BATCH, seed=0, memory_share=share)

  monkeypatch.setattr(batches, "_memory", lambda devices: images.nbytes * 2)
  monkeypatch.setattr(cache, "memory", lambda: images.nbytes * 4)
  assert set(source(0.5).arrays) == {"image", "label"}
  found = {share: source(share).placement for share in (0.5, 0.49, 0.25, 0.24)}
  assert list(found.values()) == ["device", "host", "host", "disk"]
  assert source(0.24).arrays == ()


@pytest.mark.parametrize("streamer", ["tf", "threads"])
def test_from_disk_only_batches_are_read(images, labels, streamer):
  class OnDisk(rows.Rows):
    def __array__(self, dtype=None, copy=None):
      raise MemoryError("all of it")

  index = np.arange(SIZE)[::2]
  stored = OnDisk(images, index)

  def source(placement):
    return data.make_source(
      stored, labels[index], BATCH, seed=0, placement=placement,
      streamer=streamer,
    )  # fmt: skip

  got = take(source("disk"), 0, 2)
  for step, batch in enumerate(got):
    order = data.order(0, 0, len(index))[step * BATCH :][:BATCH]
    np.testing.assert_array_equal(batch["image"], images[index[order]])
  for placement in ("host", "device"):
    with pytest.raises(MemoryError, match="all of it"):
      source(placement)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"batch_size": 23}, "batch_size is 23"),
    ({"placement": "gpu"}, 'placement is "gpu"'),
    ({"streamer": "grain"}, 'streamer is "grain"'),
  ],
)
def test_make_source_refuses(images, labels, arguments, words):
  with pytest.raises(UserError, match=words):
    data.make_source(
      images, labels, **({"batch_size": BATCH, "seed": 0} | arguments)
    )


def test_batch_must_divide_over_the_mesh(images, labels):
  devices = mesh()
  if devices.size == 1:
    pytest.skip("one device divides every batch")
  with pytest.raises(UserError, match=r"batch_size is 5.*evenly over"):
    data.make_source(images, labels, 5, seed=0, mesh=devices)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 30])
def test_padded_batches_cover_every_image_once(images, labels, batch_size):
  got = list(data.padded_batches(images, labels, batch_size))
  assert len(got) == -(-SIZE // batch_size)
  for batch in got:
    assert batch["image"].shape == (batch_size, 4, 4, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["mask"].dtype == bool
    assert not batch["label"][~batch["mask"]].any()
  joined = {k: np.concatenate([b[k] for b in got]) for k in got[0]}
  mask = joined["mask"]
  np.testing.assert_array_equal(joined["image"][mask], images)
  np.testing.assert_array_equal(joined["label"][mask], labels)
