"""Sets by name or file: what they hold, what is cached, what is refused."""

import dataclasses
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest

from vit_ssl_jax.data import registry, tfds_sets
from vit_ssl_jax.data.load import load
from vit_ssl_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
  home = tmp_path / "cache"
  monkeypatch.setenv("XDG_CACHE_HOME", str(home))
  return home


def arrays(train=20, test=6, shape=(8, 8, 3)):
  rng = np.random.default_rng(0)
  return {
    "train_images": rng.integers(0, 256, (train, *shape), np.uint8),
    "train_labels": np.arange(train) % 4,
    "test_images": rng.integers(0, 256, (test, *shape), np.uint8),
    "test_labels": np.arange(test) % 3,
  }


def save(path, **changes):
  """Writes `arrays()` with the changes; a change to None drops the key."""
  chosen = {k: v for k, v in (arrays() | changes).items() if v is not None}
  np.savez(path, **chosen)
  return f"npz:{path}"


def run_python(code, **env):
  return subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | env,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_npz_holds_what_the_file_holds(tmp_path):
  name = save(tmp_path / "a.npz", others=np.zeros(3))
  got = load(name, 8)
  want = arrays()
  for key, value in want.items():
    np.testing.assert_array_equal(getattr(got, key), value)
  assert got.train_images.dtype == np.uint8
  assert got.train_labels.dtype == got.test_labels.dtype == np.int32
  assert got.classes == ("0", "1", "2", "3")
  assert got.name == name


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1)])
def test_npz_of_grey_images_and_column_labels(tmp_path, shape):
  want = arrays(shape=shape)
  for key in ("train_labels", "test_labels"):
    want[key] = want[key][:, None].astype(np.uint8)
  np.savez(tmp_path / "a.npz", **want)
  got = load(f"npz:{tmp_path}/a.npz", 8)
  assert got.train_images.shape == (20, 8, 8, 3)
  for channel in range(3):
    np.testing.assert_array_equal(
      got.train_images[..., channel], want["train_images"].reshape(20, 8, 8)
    )
  np.testing.assert_array_equal(got.train_labels, want["train_labels"][:, 0])


IMAGES = arrays()["train_images"]


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"test_labels": None}, ["lacks test_labels", "must hold"]),
    ({"val_images": IMAGES}, ["lacks val_labels", "and holds train_images"]),
    ({"train_images": IMAGES / 255}, ["train_images", "float64", "uint8"]),
    ({"train_images": IMAGES[..., :2]}, ["(20, 8, 8, 2)", "(N, H, W, 3)"]),
    ({"train_images": IMAGES[:0], "train_labels": np.arange(0)}, ["empty"]),
    ({"train_labels": np.zeros(20)}, ["train_labels", "float64", "integers"]),
    ({"train_labels": np.arange(19)}, ["20 train_images", "19 train_labels"]),
    ({"test_labels": np.arange(6) - 1}, ["test_labels", "-1", "from 0"]),
    ({"train_labels": np.array([{}] * 20)}, ["train_labels", "cannot be read"]),
  ],
)
def test_npz_refuses(tmp_path, changes, words):
  name = save(tmp_path / "bad.npz", **changes)
  with pytest.raises(UserError) as caught:
    load(name, 8)
  for word in ["bad.npz", *words]:
    assert word in str(caught.value)
  assert "\n" not in str(caught.value)


def test_npz_refuses_what_is_no_npz(tmp_path):
  with pytest.raises(UserError, match=r"absent\.npz cannot be read: No such"):
    load(f"npz:{tmp_path}/absent.npz", 8)
  (tmp_path / "empty.npz").write_bytes(b"")
  np.save(tmp_path / "one.npy", np.zeros(3))
  whole = pathlib.Path(save(tmp_path / "whole.npz")[4:]).read_bytes()
  (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
  for file in ("empty.npz", "one.npy", "cut.npz"):
    with pytest.raises(UserError, match=rf"{file} is not an \.npz file"):
      load(f"npz:{tmp_path}/{file}", 8)
  with pytest.raises(UserError, match="cannot be read"):
    load(f"npz:{tmp_path}", 8)


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("cifar11", "did you mean 'cifar10'"),
    ("imagenet", "possible are cifar10, cifar100, cinic10, svhn"),
    ("folders:/tmp", "npz:/path/file.npz, folder:/path"),
  ],
)
def test_names_that_are_not_sets(name, words):
  with pytest.raises(UserError, match=words):
    load(name, 32)


def test_splits_are_for_tfds_alone(tmp_path):
  name = save(tmp_path / "a.npz")
  for split in ("train_split", "val_split"):
    with pytest.raises(UserError, match="has no TFDS splits"):
      load(name, 8, **{split: "train[:10%]"})


def test_unprepared_set_is_one_sentence_and_quick(tmp_path, monkeypatch):
  nowhere = dataclasses.replace(
    registry.SETS["cifar10"], host="http://127.0.0.1:9"
  )
  monkeypatch.setitem(registry.SETS, "cifar10", nowhere)
  root = tmp_path / "sets"
  with pytest.raises(UserError) as caught:
    load("cifar10", 32, data_dir=str(root))
  for word in (str(root), "tfds build cifar10", "TFDS_DATA_DIR", "data_dir"):
    assert word in str(caught.value)
  assert not root.exists()


def test_unprepared_set_in_a_read_only_directory(tmp_path, monkeypatch):
  root = tmp_path / "sets"
  root.mkdir()
  root.chmod(stat.S_IRUSR | stat.S_IXUSR)
  monkeypatch.setenv("TFDS_DATA_DIR", str(root))
  with pytest.raises(UserError, match=r"svhn.*read-only.*svhn_cropped"):
    load("svhn", 32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A TFDS directory that holds the set."""
  root = tmp_path_factory.mktemp("tfds")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    load("digits", 8, data_dir=str(root), progress=False)
  return root


class TestDigits:
  """The builder, through TFDS."""

  def test_holds_scikit_learns_digits(self, root):
    from sklearn import datasets

    assert (root / "digits" / "1.0.0" / "dataset_info.json").exists()
    got = load("digits", 8, data_dir=str(root), progress=False)
    assert got.train_images.shape == (1437, 8, 8, 3)
    assert got.test_images.shape == (360, 8, 8, 3)
    assert got.classes == tuple("0123456789")
    raw = datasets.load_digits()
    images = np.concatenate([got.train_images, got.test_images])[..., 0]
    labels = np.concatenate([got.train_labels, got.test_labels])
    want = np.round(raw.images * (255 / 16)).astype(np.uint8)

    def rows(images, labels):
      flat = images.reshape(len(images), -1)
      return sorted(zip(flat.tolist(), labels.tolist(), strict=True))

    assert rows(images, labels) == rows(want, raw.target)
    share = np.bincount(got.test_labels) / np.bincount(labels)
    assert (abs(share - 360 / 1797) < 0.01).all()

  def test_neither_the_cache_nor_an_npz_needs_tensorflow(self, root, tmp_path):
    first = load("digits", 16, data_dir=str(root), progress=False)
    np.save(tmp_path / "want.npy", first.train_images)
    done = run_python(
      "import sys, numpy as np\n"
      "from vit_ssl_jax.data import batches, load\n"
      "from vit_ssl_jax.parallel import mesh\n"
      f"d = load.load('digits', 16, data_dir={str(root)!r})\n"
      f"want = np.load({str(tmp_path / 'want.npy')!r})\n"
      "np.testing.assert_array_equal(d.train_images, want)\n"
      f"d = load.load({save(tmp_path / 'a.npz')!r}, 16)\n"
      "s = batches.make_source(d.train_images, d.train_labels, 4, seed=0,\n"
      "                        mesh=mesh.one_device_mesh())\n"
      "s.fetch(s.arrays, next(s.items(0)))\n"
      "assert not any(m.startswith('tensorflow') for m in sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr

  def test_splits_and_their_errors(self, root, cache_home):
    def load_split(split):
      return load(
        "digits", 8, data_dir=str(root), train_split=split, progress=False
      )

    whole, tenth = load_split("train"), load_split("train[:10%]")
    assert len(tenth.train_images) == 144
    np.testing.assert_array_equal(tenth.train_images, whole.train_images[:144])
    np.testing.assert_array_equal(tenth.test_labels, whole.test_labels)
    parted = load(
      "digits",
      8,
      data_dir=str(root),
      train_split="train[10%:]",
      val_split="train[:10%]",
      progress=False,
    )
    np.testing.assert_array_equal(parted.val_images, tenth.train_images)
    assert len(parted.train_images) == 1437 - 144
    before = len(list(cache_home.rglob("*.npy")))
    for split in ("trian", "train[:0%]", "train[10"):
      with pytest.raises(UserError, match=r"are test, train|are train, test"):
        load_split(split)
    assert len(list(cache_home.rglob("*.npy"))) == before

  def test_read_only_data_dir_is_left_alone(self, tmp_path, cache_home):
    root = tmp_path / "sets"
    root.mkdir()
    root.chmod(stat.S_IRUSR | stat.S_IXUSR)
    load("digits", 8, data_dir=str(root), progress=False)
    assert not list(root.iterdir())
    made = cache_home / "vit_ssl_jax" / "tfds" / "digits" / "1.0.0"
    assert json.loads((made / "dataset_info.json").read_text())["version"]

  def test_damaged_files_are_named(self, root, tmp_path):
    shutil.copytree(root / "digits", tmp_path / "digits")
    folder = tmp_path / "digits" / "1.0.0"
    for file in folder.glob("*.tfrecord*"):
      file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match=rf"{folder} cannot be read"):
      load("digits", 9, data_dir=str(tmp_path), progress=False)


def row(name):
  """A dataset's row in the table of docs/data.md."""
  entry = registry.SETS[name]
  counts = entry.train_images, entry.test_images, entry.classes
  cells = [f"`{name}`", *(f"{count:,}" for count in counts)]
  return f"| {' | '.join([*cells, str(entry.image_size), entry.source])} |"


def test_the_manual_has_every_set():
  names = list(registry.SETS)
  lines = (ROOT / "docs" / "data.md").read_text().splitlines()
  start = lines.index(row(names[0]))
  assert lines[start : start + len(names)] == [row(name) for name in names]
  assert not lines[start + len(names)]


def test_newest_prepared_version_is_read(tmp_path):
  for version in ("1.9.0", "1.10.0", "1.11.0.incompleteX", "2.0.0"):
    folder = tmp_path / "cifar10" / version
    folder.mkdir(parents=True)
    if version != "2.0.0":
      (folder / "dataset_info.json").write_text("{}")
  found = tfds_sets.prepared("cifar10", tfds_sets.data_root(str(tmp_path)))
  assert found.name == "1.10.0"
