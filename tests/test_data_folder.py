"""A user's own folder of images: layouts, order, errors, what is cached."""

import os

import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax.data import folder, load, pixels
from vit_ssl_jax.errors import UserError

COLOURS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cat": (0, 0, 250)}
PAIR = ("ant", "bee")


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
  home = tmp_path / "cache"
  monkeypatch.setenv("XDG_CACHE_HOME", str(home))
  return home


@pytest.fixture
def root(tmp_path):
  made = tmp_path / "my pets"
  made.mkdir()
  return made


def paint(path, colour, number=0):
  """A picture whose colour says its class and whose brightness its number."""
  path.parent.mkdir(parents=True, exist_ok=True)
  colour = tuple(number if c == 0 else c for c in colour)
  Image.new("RGB", (8, 8), colour).save(path)


def grow(root, counts, suffix=".png"):
  """{"train/cat": 3} -> three images of a cat, numbered through."""
  number = 0
  for place, count in counts.items():
    for i in range(count):
      name = place.rpartition("/")[2]
      paint(root / place / f"{i:03}{suffix}", COLOURS[name], number)
      number += 1


def both(count=4, classes=PAIR, parts=("train", "test")):
  return {f"{part}/{name}": count for part in parts for name in classes}


def read(root, size=8, **options):
  options = load.Options(**{"test_fraction": 0.25, "progress": False} | options)
  parts, classes = folder.read(str(root), size, options)
  broken = {}
  for part in parts.values():
    broken |= part.broken
  return parts, classes, broken


def check(part, classes, count):
  """Every image has its class's colour; returns their numbers."""
  images, labels = part.images, part.labels
  assert images.dtype == np.uint8
  assert labels.dtype == np.int32
  assert len(images) == len(labels)
  kept = np.flatnonzero(labels >= 0)
  assert len(kept) == count
  numbers = []
  for row in kept:
    colour = np.array(COLOURS[classes[labels[row]]])
    pixel = images[row, 3, 3]
    assert (pixel[colour > 0] == 250).all()
    numbers.append(int(pixel.min()))
  return numbers


def refused(root, **options):
  with pytest.raises(UserError) as caught:
    read(root, **options)
  message = str(caught.value)
  assert "\n" not in message
  assert str(root) in message
  assert not message.endswith(".")
  return message


class TestLayouts:
  def test_train_and_test(self, root):
    grow(root, both(4) | {"train/cat": 2})
    parts, classes, broken = read(root)
    assert classes == ("ant", "bee", "cat")
    assert list(parts) == ["train", "test"]
    assert check(parts["train"], classes, 10) == [*range(8), 16, 17]
    check(parts["test"], classes, 8)
    assert broken == {}

  @pytest.mark.parametrize(
    ("folders", "names"),
    [
      (("Training", "TEST"), ("train", "test")),
      (("train", "valid"), ("train", "test")),
      (("train", "test", "Val"), ("train", "test", "val")),
    ],
  )
  def test_other_names_of_parts(self, root, folders, names):
    grow(root, both(3, parts=folders))
    parts, classes, _ = read(root)
    for i, name in enumerate(names):
      numbers = check(parts.pop(name), classes, 6)
      assert numbers == list(range(6 * i, 6 * i + 6))
    assert not parts

  def test_images_lie_deep_and_among_other_things(self, root):
    for part in ("train", "test"):
      for name in PAIR:
        for i, place in enumerate(("images/a.JPEG", "b.Png", "x/y/c.webp")):
          paint(root / part / name / place, COLOURS[name], i)
        for place in (".DS_Store", "boxes.txt", "noimage", "._b.png"):
          (root / part / name / place).write_text("?")
        hidden = root / part / name / ".ipynb_checkpoints"
        hidden.mkdir()
        (hidden / "b.png").write_text("?")
      for place in (".cache", "__MACOSX"):
        paint(root / part / place / "a.png", (9, 9, 9))
      paint(root / part / "overview.png", (9, 9, 9))
    (root / "README.md").write_text("?")
    parts, classes, _ = read(root)
    assert classes == PAIR
    for part in parts.values():
      assert part.labels.tolist() == [0, 0, 0, 1, 1, 1]
      # Sorted by path; the first is a JPEG.
      got = part.images[:, 3, 3].min(-1)
      np.testing.assert_allclose(got, [1, 0, 2, 1, 0, 2], atol=4)

  def test_symbolic_links_are_followed_but_not_in_circles(self, root, tmp_path):
    grow(tmp_path / "far", {"ant": 2, "bee": 3})
    for part in ("train", "test"):
      (root / part).mkdir()
      (root / part / "ant").symlink_to(tmp_path / "far" / "ant")
      (root / part / "bee").mkdir()
      (root / part / "bee" / "up").symlink_to(root / part / "bee")
      (root / part / "bee" / "z.png").symlink_to(
        tmp_path / "far" / "bee" / "000.png"
      )
    parts, classes, _ = read(root)
    assert check(parts["train"], classes, 3) == [0, 1, 2]


class TestHeldOut:
  def test_a_share_of_every_class(self, root):
    grow(root, {"ant": 20, "bee": 8, "cat": 1})
    parts, classes, _ = read(root, test_fraction=0.25)
    train = check(parts["train"], classes, 22)
    test = check(parts["test"], classes, 7)
    assert sorted(train + test) == list(range(29))
    assert np.bincount(parts["test"].labels + 1)[1:].tolist() == [5, 2]
    assert parts["train"].images is parts["test"].images

  def test_depends_on_the_seed_and_decodes_once(self, root, monkeypatch):
    grow(root, {"ant": 20, "bee": 20})
    first = read(root, seed=1)[0]["test"].labels
    forbid_decoding(monkeypatch)
    np.testing.assert_array_equal(read(root, seed=1)[0]["test"].labels, first)
    assert (read(root, seed=2)[0]["test"].labels != first).any()
    half = read(root, seed=1, test_fraction=0.5)[0]["test"].labels
    assert (half >= 0).sum() == 20
    assert (half[first >= 0] >= 0).all()

  def test_broken_images_are_in_neither_part(self, root):
    grow(root, {"ant": 8, "bee": 8})
    (root / "bee" / "002.png").write_bytes(b"")
    parts, classes, broken = read(root, skip_broken_images=True)
    check(parts["train"], classes, 11)
    check(parts["test"], classes, 4)
    assert broken == {"bee/002.png": "empty"}


def forbid_decoding(monkeypatch):
  def fail(*_):
    raise AssertionError("decoded again")

  monkeypatch.setattr(pixels, "decode_stored", fail)


class TestCache:
  def files(self, cache_home):
    found = cache_home / "vit_ssl_jax" / "decoded"
    return sorted(p.name for p in found.iterdir()) if found.exists() else []

  def test_second_start_decodes_nothing(self, root, monkeypatch, cache_home):
    grow(root, both(4))
    first = read(root)
    forbid_decoding(monkeypatch)
    again = read(root)
    assert again[1:] == first[1:]
    for part in first[0]:
      for key in ("images", "labels", "fingerprints"):
        got = (getattr(x[0][part], key) for x in (first, again))
        np.testing.assert_array_equal(*got)
    names = self.files(cache_home)
    assert len(names) == 4
    assert all(name.startswith("folder-my_pets-t") for name in names)
    with pytest.raises(AssertionError, match="decoded again"):
      read(root, size=9)
    with pytest.raises(AssertionError, match="decoded again"):
      read(root, resize="squash")

  def test_changes_are_decoded_anew(self, root, cache_home):
    grow(root, both(4))
    read(root)
    path = root / "train" / "ant" / "001.png"
    old = path.stat()
    paint(path, COLOURS["ant"], 200)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    parts, classes, _ = read(root)
    assert check(parts["train"], classes, 8)[1] == 200
    assert len(self.files(cache_home)) == 6  # the test part is the same
    path.rename(path.with_name("009.png"))
    parts, classes, _ = read(root)
    assert check(parts["train"], classes, 8)[3] == 200
    path.with_name("009.png").unlink()
    check(read(root)[0]["train"], classes, 7)

  def test_a_new_class_moves_the_labels(self, root):
    grow(root, both(4, classes=("bee", "cat")))
    read(root)
    paint(root / "train" / "ant" / "0.png", COLOURS["ant"])
    parts, classes, _ = read(root)
    check(parts["test"], classes, 8)


class TestBroken:
  def damage(self, root):
    grow(root, both(6))
    bad = root / "train" / "ant"
    whole = (bad / "000.png").read_bytes()
    (bad / "000.png").write_bytes(b"")
    (bad / "001.png").write_bytes(whole[: len(whole) // 2])
    (bad / "002.png").write_text("<html>not found</html>")

  def test_are_named(self, root, cache_home):
    self.damage(root)
    for _ in range(2):
      message = refused(root)
      for word in (
        "broken images (3)",
        "train/ant/000.png (empty)",
        "train/ant/001.png (",
        "train/ant/002.png (no JPEG",
        "skip_broken_images=True skips them",
      ):
        assert word in message
    assert not list(cache_home.rglob("*.tmp"))

  def test_are_skipped_with_their_reasons(self, root, monkeypatch):
    self.damage(root)
    parts, classes, broken = read(root, skip_broken_images=True)
    assert check(parts["train"], classes, 9) == list(range(3, 12))
    check(parts["test"], classes, 12)
    assert list(broken) == [f"train/ant/00{i}.png" for i in range(3)]
    assert broken["train/ant/000.png"] == "empty"
    forbid_decoding(monkeypatch)
    assert read(root, skip_broken_images=True)[2] == broken
    assert "broken images (3)" in refused(root)

  def test_a_class_of_them_is_refused(self, root):
    grow(root, both(2))
    for file in (root / "train" / "bee").iterdir():
      file.write_bytes(b"")
    message = refused(root, skip_broken_images=True)
    assert "all training images of bee are broken" in message


class TestErrors:
  def test_no_folder(self, root):
    assert "there is no folder" in refused(root / "absent")
    (root / "file.zip").write_text("?")
    assert "is a file" in refused(root / "file.zip")
    with pytest.raises(UserError, match="no folder ''"):
      read("")

  @pytest.mark.parametrize(
    ("counts", "words"),
    [
      ({}, ["no images", "for each class"]),
      ({"ant": 0, "bee": 0}, ["no images"]),
      ({"ant": 3, "bee": 0, "cat": 0}, ["no images in bee, cat"]),
      ({"ant": 3}, ["only one class, 'ant'"]),
      ({"ant": 1, "bee": 1}, ["test part", "only one of each class"]),
      (both(2, parts=("train",)), ["no test or val folder", "test_fraction"]),
      (both(2, parts=("test", "val")), ["test, val but no train"]),
      (both(2, parts=("train", "test", "val", "valid")), ["val, valid"]),
      (both(2) | {"train/cat": 0}, ["train has no images in cat"]),
      (both(2) | {"test/cat": 1}, ["classes in test that train lacks: cat"]),
      ({"train/ant": 0, "test/ant": 2, "test/bee": 1}, ["train has no images"]),
    ],
  )
  def test_layouts_that_are_refused(self, root, counts, words):
    grow(root, counts)
    for place in counts:
      (root / place).mkdir(parents=True, exist_ok=True)
    message = refused(root)
    for word in words:
      assert word in message

  def test_images_without_class_folders(self, root):
    paint(root / "a.png", (9, 9, 9))
    assert "images outside class folders" in refused(root)
    grow(root, both(2))
    for name in PAIR:
      for file in (root / "test" / name).iterdir():
        file.rename(root / "test" / f"{name}{file.name}")
      (root / "test" / name).rmdir()
    assert "test has images outside class folders" in refused(root)

  def test_links_to_nothing(self, root):
    grow(root, both(2))
    (root / "test" / "ant" / "z.png").symlink_to(root / "absent")
    assert "z.png cannot be read: No such file" in refused(root)


def test_names_of_every_kind(root):
  names = ["Größe", "a b", "日本", os.fsdecode(b"\xff\xfe")]
  for name in names:
    for i in range(2):
      paint(root / name / f"{name}{i}.png", (9, 9, 9))
  _, classes, _ = read(root)
  assert classes == tuple(sorted(names))
  (root / names[-1] / "x.png").write_bytes(b"")
  _, _, broken = read(root, skip_broken_images=True)
  assert list(broken) == [f"{names[-1]}/x.png"]
