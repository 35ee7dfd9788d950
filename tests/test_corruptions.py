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
  """(100,) uint8, the same for every severity and of all classes."""
  return np.tile(np.linspace(0, classes - 1, COUNT).astype(np.uint8), 5)


def write(folder, classes=10):
  """Writes a small set as it is published."""
  folder.mkdir(parents=True)
  np.save(folder / "labels.npy", labels_of(classes))
  for name in ALL:
    np.save(folder / f"{name}.npy", stored(name))
  return folder


@pytest.fixture(scope="module")
def cifar10_c(tmp_path_factory):
  """A published set that no test changes."""
  return write(tmp_path_factory.mktemp("npy") / "CIFAR-10-C")


@pytest.fixture
def own(tmp_path, cifar10_c):
  """Links to the files of `cifar10_c`, for a test to replace."""
  return link(cifar10_c, tmp_path / "CIFAR-10-C")


def link(source, folder):
  folder.mkdir()
  for file in source.iterdir():
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


def test_published_files_are_read_severity_by_severity(cifar10_c, monkeypatch):
  monkeypatch.setattr(tfds_sets, "tensorflow", None)  # is not needed
  place = corruptions.find(f"cifar10_c:{cifar10_c}")
  assert (place.name, place.corruptions) == ("cifar10_c", ALL)
  want = itertools.product(ALL, range(5))
  for got, (name, i) in zip(corruptions.read(place, 32), want, strict=True):
    corruption, severity, images, labels = got
    assert (corruption, severity) == (name, i + 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.uint8)
    rows = slice(i * COUNT, (i + 1) * COUNT)
    np.testing.assert_array_equal(images, stored(name)[rows])
    np.testing.assert_array_equal(labels, labels_of(10)[rows])
    assert images.flags.writeable  # a copy: the file may go


def test_images_are_resized(cifar10_c):
  place = corruptions.find(f"cifar10_c:{cifar10_c}")
  _, _, images, _ = next(corruptions.read(place, 48))
  want = Image.fromarray(stored("gaussian_noise")[3])
  want = np.asarray(want.resize((48, 48), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(images[3], want)


def test_extra_corruptions_may_be_absent_and_files_may_vanish(own):
  (own / "spatter.npy").unlink()
  place = corruptions.find(f"cifar10_c:{own}")
  assert place.corruptions == tuple(c for c in ALL if c != "spatter")
  read = corruptions.read(place, 32)
  (own / "shot_noise.npy").unlink()
  for severity in range(1, 6):
    assert next(read)[:2] == ("gaussian_noise", severity)
  with pytest.raises(UserError, match=r"shot_noise\.npy cannot be read: No"):
    next(read)


def test_folders_that_are_searched(tmp_path, monkeypatch):
  write(tmp_path / "a" / "downloads" / "manual" / "CIFAR-100-C", 100)
  write(tmp_path / "a" / "CIFAR-10-C")
  write(tmp_path / "b" / "CIFAR-100-C", 100)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "b"))
  monkeypatch.setenv("HOME", str(tmp_path))
  for arguments, folder in (
    (("cifar10_c", f"{tmp_path}/a"), "a/CIFAR-10-C"),
    (("cifar100_c", f"{tmp_path}/a"), "a/downloads/manual/CIFAR-100-C"),
    (("cifar100_c",), "b/CIFAR-100-C"),
    (("cifar10_c:~/a/CIFAR-10-C",), "a/CIFAR-10-C"),
  ):
    place = corruptions.find(*arguments)
    assert not place.prepared
    assert pathlib.Path(place.folder) == tmp_path / folder


def test_errors_for_missing_sets_say_how_to_get_them(tmp_path):
  error = refused("cifar10_c", str(tmp_path))
  for words in (
    f"{tmp_path}/CIFAR-10-C or",
    f"{tmp_path}/downloads/manual/CIFAR-10-C or",
    f"{tmp_path}/cifar10_corrupted:",
    "unpack https://zenodo.org/records/2535967/files/CIFAR-10-C.tar",
    "MD5 56bf5dcef84df0e2308c6dcbcbbd8499",
    f"`tfds build cifar10_corrupted --data_dir={tmp_path}`",
    "--suite=cifar10_c:/path/to/CIFAR-10-C",
  ):
    assert words in error
  error = refused("cifar100_c", str(tmp_path))
  assert "records/3555552/files/CIFAR-100-C.tar" in error
  assert "tfds" not in error


@pytest.mark.parametrize(
  ("file", "content", "words"),
  [
    ("labels", None, ["cannot be read: No such file"]),
    ("jpeg_compression", None, ["cannot be read: No such file"]),
    ("fog", stored("fog")[:-1], ["uint8 of shape (99, 32, 32, 3)", "(100, "]),
    ("fog", stored("fog") / 255, ["float64 of", "must be uint8"]),
    ("fog", stored("fog")[:, 0], ["(100, 32, 3)"]),
    ("spatter", stored("fog")[:COUNT], ["(20, 32, 32, 3)"]),
    ("fog", b"", ["is truncated or not an .npy"]),
    ("fog", b"\x93NUMPY\x01\x00v\x00{'descr'", ["is truncated or not an"]),
    ("fog", b"<html>" * 99, ["is truncated or not an .npy"]),
    ("fog", np.array([{}] * 100), ["is truncated or not an .npy"]),
    ("labels", labels_of(10)[:COUNT], ["(20,)", "integer of shape (100,)"]),
    ("labels", labels_of(10)[:, None], ["(100, 1)", "must be integer"]),
    ("labels", labels_of(10) / 1.0, ["float64", "must be integer"]),
    ("labels", labels_of(10) + 1, ["in [1, 10];", "must be in [0, 9]"]),
    ("labels", labels_of(10) - 10 * (labels_of(10) == 0), ["in [-10, 9];"]),
    ("labels", labels_of(100), ["in [0, 99];", "cifar10_c must be in [0, 9]"]),
  ],
)
def test_files_that_are_not_as_published(own, file, content, words):
  path = own / f"{file}.npy"
  if content is None:
    path.unlink()
  else:
    replace(path, content)
  error = refused(f"cifar10_c:{own}")
  for word in [str(path), *words]:
    assert word in error


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
  folder = root / "cifar10_corrupted"
  names = [corruptions.TFDS_NAMES.get(name, name) for name in ALL]
  for name, severity in itertools.product(names, range(1, 6)):
    path = folder / f"{name}_{severity}"
    if not path.exists():
      path.symlink_to(folder / "elastic_5")
  return root


def test_prepared_sets_hold_what_was_published(tfds_root, monkeypatch):
  place = corruptions.find("cifar10_c", str(tfds_root))
  assert place.prepared
  assert place.corruptions == ALL

  def rows(images, labels):
    flat = images.reshape(len(images), -1)
    return sorted(zip(flat.tolist(), labels.tolist(), strict=True))

  built = (("glass_blur", 4), ("elastic_transform", 5), ("saturate", 1))
  for name, severity in built:
    images, labels = corruptions.read_prepared(place, name, severity)
    assert images.dtype == np.uint8
    part = slice((severity - 1) * COUNT, severity * COUNT)
    want = rows(stored(name)[part], labels_of(10)[part])
    assert rows(images, labels) == want
  read = corruptions.read(place, 16)
  for want in (1, 2):
    name, severity, images, _ = next(read)
    assert (name, severity) == ("gaussian_noise", want)
    assert images.shape == (COUNT, 16, 16, 3)


def test_published_sets_come_first(tfds_root, tmp_path, cifar10_c):
  (tmp_path / "cifar10_corrupted").symlink_to(tfds_root / "cifar10_corrupted")
  assert corruptions.find("cifar10_c", str(tmp_path)).prepared
  (tmp_path / "CIFAR-10-C").symlink_to(cifar10_c)
  assert not corruptions.find("cifar10_c", str(tmp_path)).prepared


def test_prepared_sets_may_lack_extra_corruptions_alone(tfds_root, tmp_path):
  name = "cifar10_corrupted"
  folder = link(tfds_root / name, tmp_path / name)
  (folder / "saturate_2").unlink()
  place = corruptions.find("cifar10_c", str(tmp_path))
  assert place.corruptions == ALL[:-1]
  (folder / "elastic_3").unlink()
  (folder / "fog_1").unlink()
  error = refused("cifar10_c", str(tmp_path))
  assert f"{folder} lacks severities of fog, elastic_transform" in error
  assert "run `tfds build cifar10_corrupted" in error


def test_damaged_prepared_sets_are_named(tfds_root, tmp_path, monkeypatch):
  name = "cifar10_corrupted"
  folder = link(tfds_root / name, tmp_path / name)
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
