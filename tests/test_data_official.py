"""The sets that TFDS itself has, from small files in their official formats."""

import numpy as np
import pytest
import scipy.io

from vit_ssl_jax.data import tfds_sets
from vit_ssl_jax.data.load import load

COUNTS = {"train": 12, "test": 6}


def pictures(count, first):
  """(count, 32, 32, 3) uint8, of which each holds its own number."""
  numbers = np.arange(first, first + count, dtype=np.uint8)
  return np.broadcast_to(numbers[:, None, None, None], (count, 32, 32, 3))


def write_cifar(folder, names, files, coarse):
  """The binary version: labels, then the red, green and blue plane."""
  folder.mkdir(parents=True)
  for file, labels in names.items():
    (folder / file).write_text("".join(f"{label}\n" for label in labels))
  first = 0
  for file, count in files.items():
    rows = []
    for image in pictures(count, first):
      labels = [first % 7] * coarse + [int(image[0, 0, 0]) % 10]
      rows.append(bytes(labels) + image.transpose(2, 0, 1).tobytes())
    (folder / file).write_bytes(b"".join(rows))
    first += count


def write_svhn(folder):
  """MATLAB files, in which the digit 0 is called 10."""
  folder.mkdir(parents=True)
  first = 0
  for part, count in {**COUNTS, "extra": 4}.items():
    images = pictures(count, first)
    digits = images[:, 0, 0, :1] % 10
    content = {"X": images.transpose(1, 2, 3, 0)}
    content["y"] = np.where(digits == 0, 10, digits)
    scipy.io.savemat(folder / f"{part}_32x32.mat", content)
    first += count


def official(name, folder):
  """Writes a set's files; returns them by the end of the URL TFDS has."""
  if name == "svhn":
    write_svhn(folder)
    return {
      f"{x}_32x32.mat": folder / f"{x}_32x32.mat" for x in (*COUNTS, "extra")
    }
  coarse = name == "cifar100"
  fine = [f"class {i:02}" for i in range(100 if coarse else 10)]
  if coarse:
    names = {"fine_label_names.txt": fine}
    names["coarse_label_names.txt"] = [f"kind {i:02}" for i in range(20)]
    files = {"train.bin": 12, "test.bin": 6}
    write_cifar(folder / "cifar-100-binary", names, files, coarse)
    return {"cifar-100-binary.tar.gz": folder}
  files = {f"data_batch_{i}.bin": c for i, c in enumerate((4, 2, 2, 2, 2), 1)}
  names = {"batches.meta.txt": fine}
  write_cifar(
    folder / "cifar-10-batches-bin",
    names,
    files | {"test_batch.bin": 6},
    coarse,
  )
  return {"cifar-10-binary.tar.gz": folder}


@pytest.mark.parametrize(
  ("name", "classes"), [("cifar10", 10), ("cifar100", 100), ("svhn", 10)]
)
def test_from_official_files(name, classes, tmp_path, monkeypatch):
  tfds_sets.tensorflow()
  import tensorflow_datasets as tfds

  found = official(name, tmp_path / "official")

  def have(self, urls):
    if isinstance(urls, dict):
      return {key: have(self, url) for key, url in urls.items()}
    return str(found[urls.rsplit("/", 1)[1]])

  monkeypatch.setattr(tfds_sets, "check_answers", lambda *_: None)
  for method in ("download", "download_and_extract"):
    monkeypatch.setattr(tfds.download.DownloadManager, method, have)
  got = load(name, 32, data_dir=str(tmp_path / "sets"), progress=False)
  assert len(got.classes) == classes
  shown = {}
  for part, count in COUNTS.items():
    images = getattr(got, f"{part}_images")
    assert images.shape == (count, 32, 32, 3)
    assert (images == images[:, :1, :1, :1]).all()
    shown[part] = images[:, 0, 0, 0]
    labels = getattr(got, f"{part}_labels")
    np.testing.assert_array_equal(labels, shown[part] % 10)
  # Without what SVHN calls extra.
  assert sorted(shown["train"]) == list(range(12))
  assert sorted(shown["test"]) == list(range(12, 18))
