"""CIFAR-C as published and as TFDS prepares it: what is read and refused."""

import itertools
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax.data import tfds_sets
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import corruptions

COUNT = 20  # images of one corruption at one severity
ALL = corruptions.CORRUPTIONS + corruptions.EXTRA


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
  monkeypatch.setattr(corruptions, "IMAGES", COUNT)


def stored(name):
  """All severities of one corruption, (100, 32, 32, 3) uint8."""
  rng = np.random.default_rng(ALL.index(name))
  return rng.integers(0, 256, (5 * COUNT, 32, 32, 3), np.uint8)


def labels_of(classes):
  """(100,) uint8, every severity's the same and of all classes."""
  return np.tile(np.linspace(0, classes - 1, COUNT).astype(np.uint8), 5)


def write(folder, classes=10, names=ALL):
  """Writes a set as it is published, small."""
  folder.mkdir(parents=True)
  np.save(folder / "labels.npy", labels_of(classes))
  for name in names:
    np.save(folder / f"{name}.npy", stored(name))
  return folder


@pytest.fixture(scope="module")
def cifar10_c(tmp_path_factory):
  """A published set that no test changes."""
  return write(tmp_path_factory.mktemp("npy") / "CIFAR-10-C")


@pytest.fixture
def own(tmp_path, cifar10_c):
  """Links to the files of `cifar10_c`, for a test to replace."""
  folder = tmp_path / "CIFAR-10-C"
  folder.mkdir()
  for file in cifar10_c.iterdir():
    (folder / file.name).symlink_to(file)
  return folder


def replace(path, content):
  path.unlink()
  if isinstance(content, bytes):
    path.write_bytes(content)
  else:
    np.save(path, content)


def refused(name, data_dir=None):
  """The sentence that `find` refuses with."""
  with pytest.raises(UserError) as caught:
    corruptions.find(name, data_dir)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_names_are_the_benchmarks():
  assert (len(corruptions.CORRUPTIONS), len(corruptions.EXTRA)) == (15, 4)
  assert len(set(ALL)) == 19
  assert corruptions.SEVERITIES == (1, 2, 3, 4, 5)


def test_published_files_are_read_severity_by_severity(cifar10_c, monkeypatch):
  def no_tensorflow():
    raise AssertionError

  monkeypatch.setattr(tfds_sets, "tensorflow", no_tensorflow)
  place = corruptions.find(f"cifar10_c:{cifar10_c}")
  assert place.name == "cifar10_c"
  assert place.corruptions == ALL
  want = itertools.product(ALL, range(5))
  for got, (name, i) in zip(corruptions.read(place, 32), want, strict=True):
    corruption, severity, images, labels = got
    assert (corruption, severity) == (name, i + 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.uint8)
    here = slice(i * COUNT, (i + 1) * COUNT)
    np.testing.assert_array_equal(images, stored(name)[here])
    np.testing.assert_array_equal(labels, labels_of(10)[here])
    assert images.flags.writeable  # a copy: the file may go


def test_severities_may_have_labels_of_their_own(own):
  labels = labels_of(10)
  labels[COUNT:] = labels[COUNT:][::-1]
  replace(own / "labels.npy", labels.astype(np.int64))
  read = corruptions.read(corruptions.find(f"cifar10_c:{own}"), 32)
  next(read)
  np.testing.assert_array_equal(next(read)[3], labels[COUNT : 2 * COUNT])


def test_other_sizes_are_resized(cifar10_c):
  place = corruptions.find(f"cifar10_c:{cifar10_c}")
  _, _, images, _ = next(corruptions.read(place, 48))
  want = Image.fromarray(stored("gaussian_noise")[3])
  want = np.asarray(want.resize((48, 48), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(images[3], want)


def test_files_are_read_only_when_their_turn_comes(own):
  place = corruptions.find(f"cifar10_c:{own}")
  read = corruptions.read(place, 32)
  for file in own.glob("*_noise.npy"):
    if file.name != "gaussian_noise.npy":
      file.unlink()
  for severity in range(1, 6):
    assert next(read)[:2] == ("gaussian_noise", severity)
  with pytest.raises(UserError, match=r"shot_noise\.npy cannot be read: No"):
    next(read)


def test_extra_corruptions_may_be_absent(own):
  (own / "spatter.npy").unlink()
  place = corruptions.find(f"cifar10_c:{own}")
  assert place.corruptions == tuple(c for c in ALL if c != "spatter")


def test_places_that_are_looked_at(tmp_path, monkeypatch):
  write(tmp_path / "a" / "downloads" / "manual" / "CIFAR-100-C", 100)
  write(tmp_path / "a" / "CIFAR-10-C")
  write(tmp_path / "b" / "CIFAR-100-C", 100)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "b"))

  def found(*arguments):
    place = corruptions.find(*arguments)
    assert not place.prepared
    return pathlib.Path(place.folder).relative_to(tmp_path).as_posix()

  a = str(tmp_path / "a")
  assert found("cifar10_c", a) == "a/CIFAR-10-C"
  assert found("cifar100_c", a) == "a/downloads/manual/CIFAR-100-C"
  assert found("cifar100_c") == "b/CIFAR-100-C"
  monkeypatch.setenv("HOME", str(tmp_path))
  assert found("cifar10_c:~/a/CIFAR-10-C") == "a/CIFAR-10-C"


def test_absent_sets_say_how_to_get_them(tmp_path):
  said = refused("cifar10_c", str(tmp_path))
  for word in (
    f"{tmp_path}/CIFAR-10-C nor",
    f"{tmp_path}/downloads/manual/CIFAR-10-C nor",
    f"{tmp_path}/cifar10_corrupted:",
    "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar",
    "MD5 56bf5dcef84df0e2308c6dcbcbbd8499",
    f"`tfds build cifar10_corrupted --data_dir={tmp_path}`",
    "cifar10_c:/path/to/CIFAR-10-C",
  ):
    assert word in said
  said = refused("cifar100_c", str(tmp_path))
  assert "records/3555552/files/CIFAR-100-C.tar" in said
  assert "tfds" not in said
  file = tmp_path / "fog.npy"
  assert f"{file}/gaussian_noise.npy cannot be read: No such" in refused(
    f"cifar10_c:{file}"
  )
  file.touch()
  assert "cannot be read: Not a directory" in refused(f"cifar10_c:{file}")


@pytest.mark.parametrize("place", ["", "downloads/manual"])
def test_an_archive_has_to_be_unpacked(tmp_path, place):
  archive = tmp_path / place / "CIFAR-100-C.tar"
  archive.parent.mkdir(parents=True, exist_ok=True)
  archive.write_bytes(b"")
  said = refused("cifar100_c", str(tmp_path))
  assert f"`tar -xf {archive} -C {archive.parent}`" in said
  assert "11f0ed0f1191edbf9fa23466ae6021d3" in said


@pytest.mark.parametrize("file", ["labels.npy", "jpeg_compression.npy"])
def test_missing_files_are_named(own, file):
  (own / file).unlink()
  assert f"{own}/{file} cannot be read: No such" in refused(f"cifar10_c:{own}")


@pytest.mark.parametrize(
  ("file", "content", "words"),
  [
    ("fog", stored("fog")[:-1], ["uint8 of shape (99, 32, 32, 3)", "(100, "]),
    ("fog", stored("fog") / 255, ["float64 of", "must be uint8"]),
    ("fog", stored("fog")[:, 0], ["(100, 32, 3)"]),
    ("spatter", stored("fog")[:COUNT], ["(20, 32, 32, 3)"]),
    ("fog", b"", ["is cut off or no .npy"]),
    ("fog", b"\x93NUMPY\x01\x00v\x00{'descr'", ["is cut off or no .npy"]),
    ("fog", b"<html>" * 99, ["is cut off or no .npy"]),
    ("fog", np.array([{}] * 100), ["is cut off or no .npy"]),
    ("labels", labels_of(10)[:COUNT], ["(20,)", "integer of shape (100,)"]),
    ("labels", labels_of(10)[:, None], ["(100, 1)", "must be integer"]),
    ("labels", labels_of(10) / 1.0, ["float64", "must be integer"]),
    ("labels", labels_of(10) + 1, ["from 1 to 10;", "from 0 to 9."]),
    ("labels", labels_of(10) - 10 * (labels_of(10) == 0), ["from -10 to 9;"]),
    ("labels", labels_of(100), ["from 0 to 99;", "10 classes"]),
  ],
)
def test_files_that_are_not_as_published(own, file, content, words):
  replace(own / f"{file}.npy", content)
  said = refused(f"cifar10_c:{own}")
  for word in [f"{own}/{file}.npy", *words]:
    assert word in said


def test_cut_files_are_found_before_any_is_read(own):
  whole = (own / "saturate.npy").read_bytes()
  replace(own / "saturate.npy", whole[:-1])
  said = refused(f"cifar10_c:{own}")
  assert f"{own}/saturate.npy is cut off" in said


def test_cifar10_c_is_not_cifar100_c(own):
  said = refused(f"cifar100_c:{own}")
  assert "labels run from 0 to 9; with 100 classes they must" in said


PREPARED = (("glass_blur", 4), ("elastic_transform", 5), ("saturate", 1))


@pytest.fixture(scope="module")
def tfds_root(tmp_path_factory, cifar10_c):
  """A TFDS directory of all 95: three by TFDS's builder, and links to one."""
  import tensorflow_datasets as tfds

  root = tmp_path_factory.mktemp("tfds")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      tfds.download.DownloadManager,
      "download_and_extract",
      lambda self, url: os.fspath(cifar10_c.parent),
    )
    tfds.disable_progress_bar()
    for config in ("frosted_glass_blur_4", "elastic_5", "saturate_1"):
      builder = tfds.builder(f"cifar10_corrupted/{config}", data_dir=root)
      builder.download_and_prepare()
  there = root / "cifar10_corrupted"
  names = [corruptions.TFDS_NAMES.get(name, name) for name in ALL]
  for name, severity in itertools.product(names, range(1, 6)):
    link = there / f"{name}_{severity}"
    if not link.exists():
      link.symlink_to(there / "elastic_5")
  return root


class TestPrepared:
  """What `tfds build cifar10_corrupted` makes."""

  def test_holds_what_was_published(self, tfds_root):
    place = corruptions.find("cifar10_c", str(tfds_root))
    assert place.prepared
    assert place.corruptions == ALL

    def rows(images, labels):
      flat = images.reshape(len(images), -1)
      return sorted(zip(flat.tolist(), labels.tolist(), strict=True))

    for name, severity in PREPARED:
      images, labels = corruptions.read_prepared(place, name, severity)
      assert images.dtype == np.uint8
      here = slice((severity - 1) * COUNT, severity * COUNT)
      want = rows(stored(name)[here], labels_of(10)[here])
      assert rows(images, labels) == want

  def test_is_read_severity_by_severity(self, tfds_root):
    place = corruptions.find("cifar10_c", str(tfds_root))
    read = corruptions.read(place, 16)
    for severity in (1, 2):
      name, got, images, labels = next(read)
      assert (name, got) == ("gaussian_noise", severity)
      assert images.shape == (COUNT, 16, 16, 3)
      assert labels.shape == (COUNT,)

  def test_published_files_come_first(self, tfds_root, tmp_path, cifar10_c):
    (tmp_path / "cifar10_corrupted").symlink_to(tfds_root / "cifar10_corrupted")
    assert corruptions.find("cifar10_c", str(tmp_path)).prepared
    (tmp_path / "CIFAR-10-C").symlink_to(cifar10_c)
    assert not corruptions.find("cifar10_c", str(tmp_path)).prepared

  def copy(self, tfds_root, tmp_path):
    folder = tmp_path / "cifar10_corrupted"
    folder.mkdir()
    for config in (tfds_root / "cifar10_corrupted").iterdir():
      (folder / config.name).symlink_to(config)
    return folder

  def test_parts_that_lack(self, tfds_root, tmp_path):
    folder = self.copy(tfds_root, tmp_path)
    (folder / "saturate_2").unlink()
    place = corruptions.find("cifar10_c", str(tmp_path))
    assert place.corruptions == ALL[:-1]
    (folder / "elastic_3").unlink()
    (folder / "fog_1").unlink()
    said = refused("cifar10_c", str(tmp_path))
    assert f"{folder} does not hold all severities of fog, elastic_" in said
    assert "make them with `tfds build cifar10_corrupted" in said

  def test_damaged_parts_are_named(self, tfds_root, tmp_path, monkeypatch):
    folder = self.copy(tfds_root, tmp_path)
    (folder / "gaussian_noise_1").unlink()
    version = folder / "gaussian_noise_1" / "1.0.0"
    version.mkdir(parents=True)
    for file in (folder / "elastic_5" / "1.0.0").iterdir():
      cut = 7 if "tfrecord" in file.name else 0
      content = file.read_bytes()
      (version / file.name).write_bytes(content[: len(content) - cut])
    place = corruptions.find("cifar10_c", str(tmp_path))
    with pytest.raises(UserError, match=rf"{version} cannot be read: "):
      next(corruptions.read(place, 32))
    monkeypatch.setattr(corruptions, "IMAGES", COUNT + 1)
    with pytest.raises(UserError, match=r"\(20, 32, .* shape \(21, 32, "):
      corruptions.read_prepared(place, "fog", 1)
    monkeypatch.setattr(corruptions, "IMAGES", COUNT)
    other = place._replace(name="cifar100_c")
    with pytest.raises(UserError, match="labels run from 0 to 9; with 100"):
      corruptions.read_prepared(other, "fog", 1)
