"""What is common to all sources: parts, shares, statistics, placement."""

import os

import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax import files
from vit_ssl_jax.data import cache, splits, statistics
from vit_ssl_jax.data.load import Options, load
from vit_ssl_jax.errors import UserError


def save(path, train=40, classes=4, val=False, **changes):
  """An npz set whose images hold their own number."""
  count = {"train": train, "test": 8} | ({"val": 8} if val else {})
  arrays = {}
  for i, (part, size) in enumerate(count.items()):
    images = np.zeros((size, 4, 4, 3), np.uint8)
    images[..., 0] = np.arange(size)[:, None, None]
    images[..., 1] = i
    arrays[f"{part}_images"] = images
    arrays[f"{part}_labels"] = np.arange(size) % classes
  np.savez(path, **(arrays | changes))
  return f"npz:{path}"


def numbers(images):
  return np.asarray(images)[:, 0, 0, 0].tolist()


class TestRows:
  labels = np.repeat(np.arange(3), [100, 40, 3])
  fingerprints = np.random.default_rng(0).permutation(143).astype(np.uint64)

  def test_stratified_is_nested_and_seeded(self):
    def take(fraction, seed=1, stream=0):
      return splits.stratified(
        self.labels, self.fingerprints, fraction, seed, stream
      )

    quarter, half = take(0.25), take(0.5)
    assert np.bincount(self.labels[quarter]).tolist() == [25, 10, 1]
    assert np.bincount(self.labels[half]).tolist() == [50, 20, 2]
    assert set(quarter) < set(half)
    assert (np.diff(half) > 0).all()
    np.testing.assert_array_equal(quarter, take(0.25))
    assert set(quarter) != set(take(0.25, seed=2))
    assert set(quarter) != set(take(0.25, stream=2))
    assert np.bincount(self.labels[take(1e-9)]).tolist() == [1] * 3

  def test_held_out_leaves_something_of_every_class(self):
    labels = np.array([0] * 10 + [1] * 2 + [2])
    out = splits.held_out(labels, np.arange(13), 0.9, 0, 0)
    assert np.bincount(labels[out], minlength=3).tolist() == [9, 1, 0]

  def test_selected_rows_are_read_when_they_are_asked_for(self, tmp_path):
    images = np.random.default_rng(0).integers(0, 9, (9, 2, 2, 3), np.uint8)
    np.save(tmp_path / "x.npy", images)
    file = np.load(tmp_path / "x.npy", mmap_mode="r")
    chosen = cache.select(file, np.array([1, 4, 8]))
    want = images[[1, 4, 8]]
    assert (chosen.shape, chosen.nbytes) == (want.shape, want.nbytes)
    for index in (1, slice(1, 3), np.array([2, 0])):
      np.testing.assert_array_equal(chosen[index], want[index])
    np.testing.assert_array_equal(np.asarray(chosen), want)
    again = cache.select(chosen, np.array([0, 2]))
    assert again.array is file
    np.testing.assert_array_equal(np.asarray(again), images[[1, 8]])


class TestParts:
  def test_val_fraction_and_data_fraction(self, tmp_path):
    name = save(tmp_path / "a.npz")
    whole = load(name, 4)
    assert len(whole.val_images) == len(whole.val_labels) == 0
    assert whole.whole_train_size == 40
    part = load(name, 4, val_fraction=0.2)
    assert np.bincount(part.val_labels).tolist() == [2] * 4
    assert np.bincount(part.train_labels).tolist() == [8] * 4
    train, val = numbers(part.train_images), numbers(part.val_images)
    assert sorted(train + val) == list(range(40))
    assert [n % 4 for n in val] == part.val_labels.tolist()
    np.testing.assert_array_equal(part.test_images, whole.test_images)
    # What is held out does not depend on the share that is kept.
    shares = [
      load(name, 4, val_fraction=0.2, data_fraction=f) for f in (0.25, 0.5)
    ]
    for share in shares:
      assert numbers(share.val_images) == val
      assert share.whole_train_size == 32
    quarter, half = (set(numbers(share.train_images)) for share in shares)
    assert quarter < half < set(train)
    assert (len(quarter), len(half)) == (8, 16)
    other = load(name, 4, val_fraction=0.2, seed=1)
    assert numbers(other.val_images) != val

  def test_validation_images_of_its_own(self, tmp_path):
    name = save(tmp_path / "a.npz", val=True)
    got = load(name, 4)
    assert numbers(got.val_images) == list(range(8))
    assert (got.val_images[..., 1] == 2).all()
    with pytest.raises(UserError, match="validation images of its own"):
      load(name, 4, val_fraction=0.1)

  @pytest.mark.parametrize(
    ("changes", "words"),
    [
      ({"train_labels": np.zeros(40, int)}, "all train_labels are 0"),
      ({"test_labels": np.arange(8)}, "lacks 4, 5, 6, 7 of test_labels"),
    ],
  )
  def test_classes_that_cannot_be_learnt(self, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
      load(save(tmp_path / "a.npz", **changes), 4)


class TestStatistics:
  def test_are_those_of_all_pixels(self):
    images = np.random.default_rng(0).integers(0, 256, (50, 5, 5, 3), np.uint8)
    mean, std = statistics.of_channels(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)
    images[..., 1] = 9  # constant, and still to be divided by
    assert statistics.of_channels(images)[1][1] == 1

  def test_are_computed_once_of_the_whole_training_set(
    self, tmp_path, monkeypatch
  ):
    name = save(tmp_path / "a.npz")
    first = load(name, 4)
    want = (first.train_images / 255).mean((0, 1, 2))
    np.testing.assert_allclose(first.mean, want, rtol=1e-12)
    monkeypatch.setattr(statistics, "of_channels", None)
    part = load(name, 4, val_fraction=0.5, data_fraction=0.5)
    assert (part.mean, part.std) == (first.mean, first.std)

  def test_are_left_alone_where_given(self, tmp_path):
    given = load(save(tmp_path / "a.npz"), 4, mean=(0.5,) * 3)
    assert given.mean == (0.5, 0.5, 0.5)
    assert given.std != given.mean


class TestHeldOutOfAFolder:
  """What is tested on is the same whatever the images are decoded to."""

  @pytest.mark.parametrize("share", ["test", "val"])
  def test_at_any_size(self, tmp_path, share):
    rng = np.random.default_rng(0)
    for i in range(40):
      path = tmp_path / "set" / f"class {i % 2}" / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = np.full((12, 16, 3), 5 * i, np.uint8)
      pixels[..., 2] = rng.integers(0, 3, (12, 16))
      Image.fromarray(pixels).save(path)

    def shown(size, resize):
      got = load(
        f"folder:{tmp_path / 'set'}", size, resize=resize, val_fraction=0.3
      )
      images = np.asarray(getattr(got, f"{share}_images"))[..., 0]
      return sorted(images.mean((1, 2)).round().tolist())

    first = shown(8, "crop")
    assert len(first) == {"test": 8, "val": 10}[share]
    assert first == shown(6, "crop") == shown(16, "squash")


class TestCache:
  calls = 0

  def find(self):
    """Two images and a broken one, before they are decoded."""
    self.calls += 1
    whole = np.full((2, 2, 3), 7, np.uint8)
    return 3, [whole, b"", whole + 1], [0, 1, 2]

  def decoded(self, name):
    return cache.decoded(name, ("key",), 2, Options(progress=False), self.find)

  @pytest.mark.parametrize("suffix", [".npy", ".json"])
  def test_survives_damage(self, suffix):
    name = f"damage{suffix[1:]}"
    self.decoded(name)
    (path,) = files.cache_directory("decoded").glob(f"{name}*{suffix}")
    path.write_bytes(path.read_bytes()[:-20])
    assert self.decoded(name).images[2, 0, 0, 0] == 8
    assert self.calls == 2

  def test_leaves_nothing_of_what_failed(self, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def files():
      yield np.zeros((2, 2, 3), np.uint8)
      raise UserError("damaged")

    with pytest.raises(UserError, match="damaged"):
      cache.decoded("failed", (), 2, Options(), lambda: (2, files(), [0, 0]))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]

  def test_does_without_a_file_where_there_is_no_room(
    self, tmp_path, monkeypatch
  ):
    (tmp_path / "vit_ssl_jax").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    got = self.decoded("x")
    assert type(got.images) is np.ndarray
    assert got.labels.tolist() == [0, -1, 2]
    assert not [*tmp_path.rglob("*.tmp")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))

    def full(*_):
      raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    assert type(self.decoded("x").images) is np.ndarray
    assert not [*tmp_path.rglob("*.tmp")]
    monkeypatch.setattr(cache, "memory", lambda: 40)
    with pytest.raises(UserError, match="neither in memory nor in the cache"):
      self.decoded("x")

  def test_what_a_killed_process_left_is_swept_away(
    self, tmp_path, monkeypatch
  ):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = files.cache_directory("decoded")
    folder.mkdir(parents=True)
    left, fresh = (folder / f"{x}.tmp" for x in ("left", "fresh"))
    for path in (left, fresh):
      path.write_text("")
    os.utime(left, (1, 1))
    self.decoded("x")
    assert list(folder.glob("*.tmp")) == [fresh]


class TestMemory:
  def test_is_a_containers_where_that_is_less(self, tmp_path, monkeypatch):
    whole = cache.memory()
    limits = []
    for name, text in (("a", "max"), ("b", "1000000"), ("absent", None)):
      limits.append(tmp_path / name)
      if text:
        limits[-1].write_text(text)
    monkeypatch.setattr(cache, "LIMITS", limits[::2])
    assert cache.memory() >= whole
    monkeypatch.setattr(cache, "LIMITS", limits)
    assert cache.memory() == 1_000_000
