"""The builders, on small material in the official formats."""

import dataclasses
import functools
import hashlib
import http.server
import io
import pathlib
import shutil
import tarfile
import threading

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets
from tensorflow_datasets.core.download import checksums

from vit_ssl_jax.data import tfds_sets
from vit_ssl_jax.data.builders.cinic10 import NAMES, Cinic10
from vit_ssl_jax.data.builders.fgvc_aircraft import FgvcAircraft, without_banner
from vit_ssl_jax.data.builders.stanford_cars import StanfordCars
from vit_ssl_jax.data.builders.tiny_imagenet import TinyImagenet
from vit_ssl_jax.data.load import load
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import finetune

NOWHERE = "http://127.0.0.1:9/file"
WNIDS = ("n03126707", "n01443537", "n02012849")  # not in alphabetic order
VARIANTS = ("A310", "Boeing 717", "F-16A/B")
CARS = ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012")


def picture(label, size, *, banner=0, mode="RGB"):
  """A plain image whose brightness tells its label, over a white banner."""
  pixels = np.full((size[1], size[0], 3), 20 * (label + 1), np.uint8)
  if banner:
    pixels[-banner:] = 255
  return Image.fromarray(pixels).convert(mode)


def save(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path, "PNG" if path.suffix == ".png" else "JPEG")


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def make_cinic10(place):
  for folder in ("train", "valid", "test"):
    for label, name in enumerate(NAMES):
      path = place / "CINIC-10" / folder / name
      save(path / "cifar10-train-1.png", picture(label, (32, 32)))
      if folder == "train":
        grey = picture(label, (32, 32), mode="L")
        save(path / "n02708224_2.png", grey)


def make_tiny_imagenet(place):
  root = place / "tiny-imagenet-200"
  write(root / "wnids.txt", "".join(f"{wnid}\n" for wnid in WNIDS))
  words = "n01443537\tgoldfish, Carassius auratus\nn03126707\tcrane\n"
  write(root / "words.txt", f"{words}n02012849\tcrane\nn99999999\tthing\n")
  rows = []
  for label, wnid in enumerate(sorted(WNIDS)):
    for i, mode in enumerate(("RGB", "L")):
      path = root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG"
      save(path, picture(label, (64, 64), mode=mode))
    write(root / "train" / wnid / f"{wnid}_boxes.txt", "")
    # Numbered against the labels.
    image = f"val_{9 - label}.JPEG"
    save(root / "val" / "images" / image, picture(label, (64, 64)))
    rows.append(f"{image}\t{wnid}\t0\t32\t44\t62\n")
  write(root / "val" / "val_annotations.txt", "".join(rows))
  save(root / "test" / "images" / "test_0.JPEG", picture(0, (64, 64)))


def make_fgvc_aircraft(place):
  data = place / "fgvc-aircraft-2013b" / "data"
  write(data / "variants.txt", "".join(f"{name}\n" for name in VARIANTS))
  for s, split in enumerate(("train", "val", "test")):
    rows = []
    for label, name in enumerate(VARIANTS):
      number = f"{1000 * s + 9 - label:07d}"
      mode = "L" if split == "test" else "RGB"
      image = picture(label, (50 + label, 43), banner=20, mode=mode)
      save(data / "images" / f"{number}.jpg", image)
      rows.append(f"{number} {name}\n")
    write(data / f"images_variant_{split}.txt", "".join(rows))


def structs(rows):
  """A MATLAB array of structs, as the devkit's annotations."""
  array = np.empty((1, len(rows)), [(field, object) for field in rows[0]])
  array[0] = [tuple(row.values()) for row in rows]
  return array


def make_stanford_cars(place):
  (place / "devkit").mkdir(parents=True)
  for split in ("train", "test"):
    rows = []
    for i in range(4):
      name, label = f"{i + 1:05d}.jpg", (i + (split == "test")) % 2
      mode = "L" if i == 3 else "RGB"
      save(place / f"cars_{split}" / name, picture(label, (40, 30), mode=mode))
      rows.append({"bbox_x1": 39, "class": label + 1, "fname": name})
    file = "devkit/cars_train_annos.mat"
    file = "cars_test_annos_withlabels.mat" if split == "test" else file
    scipy.io.savemat(place / file, {"annotations": structs(rows)})
  meta = {"class_names": np.array([CARS], object)}
  scipy.io.savemat(place / "devkit" / "cars_meta.mat", meta)


def make_joint_cars(place):
  rows = []
  for i in range(8):
    name, label = f"car_ims/{i + 1:06d}.jpg", i // 4
    save(place / name, picture(label, (40, 30)))
    rows.append({"relative_im_path": name, "class": label + 1, "test": i % 2})
  variables = {
    "annotations": structs(rows),
    "class_names": np.array([CARS], object),
  }
  scipy.io.savemat(place / "cars_annos.mat", variables)


@dataclasses.dataclass(frozen=True)
class Set:
  builder: type
  make: callable
  counts: dict[str, int]
  classes: tuple[str, ...]
  archives: str = "ARCHIVES"  # the builder's attribute
  size: tuple[int, int] = (32, 32)


SETS = {
  "cinic10": Set(
    Cinic10, make_cinic10, {"train": 20, "validation": 10, "test": 10}, NAMES
  ),
  "tiny_imagenet": Set(
    TinyImagenet,
    make_tiny_imagenet,
    {"train": 6, "validation": 3},
    ("goldfish", "crane (n02012849)", "crane (n03126707)"),
    size=(64, 64),
  ),
  "fgvc_aircraft": Set(
    FgvcAircraft,
    make_fgvc_aircraft,
    {"train": 3, "validation": 3, "test": 3},
    VARIANTS,
    size=(23, None),
  ),
  "stanford_cars": Set(
    StanfordCars,
    make_stanford_cars,
    {"train": 4, "test": 4},
    CARS,
    size=(30, 40),
  ),
  "joint_cars": Set(
    StanfordCars,
    make_joint_cars,
    {"train": 4, "test": 4},
    CARS,
    archives="JOINT_ARCHIVES",
    size=(30, 40),
  ),
}
DOWNLOADED = ("cinic10", "tiny_imagenet", "fgvc_aircraft")


@pytest.fixture(autouse=True, scope="module")
def quiet():
  """Keeps TensorFlow off the accelerator."""
  tfds_sets.tensorflow()


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """What was published of the small sets; nothing of it on any network."""
  for made in SETS.values():
    builder = made.builder
    monkeypatch.setattr(builder, "PUBLISHED", made.counts)
    monkeypatch.setattr(builder, "CLASSES", len(made.classes))
    infos = builder.url_infos.values()
    nowhere = {f"{NOWHERE}/{info.filename}": info for info in infos}
    monkeypatch.setattr(builder, "url_infos", nowhere)


@pytest.fixture
def publish(monkeypatch):
  """Makes files the official ones, at an address, of the set of that name."""

  def publish(name, *files, url=NOWHERE):
    builder = SETS[name].builder
    old = {info.filename: info for info in builder.url_infos.values()}
    for file in files:
      kind = (
        hashlib.md5 if len(old[file.name].checksum) == 32 else hashlib.sha256
      )
      new = checksums.compute_url_info(file, kind)
      old[file.name] = (
        new if old[file.name].size else dataclasses.replace(new, size=0)
      )
    infos = {f"{url}/{key}": info for key, info in old.items()}
    monkeypatch.setattr(builder, "url_infos", infos)

  return publish


@pytest.fixture
def manual(tmp_path):
  """TFDS's manual directory, of the data directory `tmp_path`."""
  return tmp_path / "downloads" / "manual"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
  """name -> a folder that holds the set's extracted folders and files."""

  @functools.cache
  def make(name):
    place = tmp_path_factory.mktemp(name)
    SETS[name].make(place)
    return place

  return make


@pytest.fixture
def extracted(made, manual, publish):
  """Puts a set's folders into the manual directory; returns that."""

  def extract(name, place=manual):
    archives = getattr(SETS[name].builder, SETS[name].archives)
    # What is no archive is checked as the archives are.
    files = [made(name) / file for file in archives if not archives[file]]
    publish(name, *files)
    return shutil.copytree(made(name), place)

  return extract


@pytest.fixture
def packed(made, manual, publish):
  """Packs a set's archives and makes them the official ones."""

  def pack(name, place=manual, url=NOWHERE):
    place.mkdir(parents=True, exist_ok=True)
    archives = getattr(SETS[name].builder, SETS[name].archives)
    for file, folder in archives.items():
      pack_one(made(name), place / file, folder)
    publish(name, *(place / file for file in archives), url=url)

  return pack


def pack_one(source, file, folder):
  """Writes one archive, or copies the file."""
  if not folder:
    shutil.copy(source / file.name, file)
  elif file.suffix == ".zip":
    shutil.make_archive(file.with_suffix(""), "zip", source)
  else:
    with tarfile.open(file, "w:gz") as pack:
      # The official CINIC-10 has no folder around it.
      bare = file.name == "CINIC-10.tar.gz"
      pack.add(source / folder, "." if bare else folder)


def prepare(name, data_dir):
  """A set's builder, prepared."""
  builder = SETS[name].builder(data_dir=data_dir)
  builder.download_and_prepare()
  return builder


def refused(name, data_dir):
  """The sentence that preparing the set ends with."""
  with pytest.raises(UserError) as caught:
    prepare(name, data_dir)
  folder = pathlib.Path(data_dir, SETS[name].builder.name)
  assert not folder.exists() or not list(folder.iterdir())
  assert "\n" not in str(caught.value)
  return str(caught.value)


def check(name, builder):
  """Every image is there and has the label that it shows."""
  wanted = SETS[name]
  assert builder.info.features["label"].names == [*wanted.classes]
  counts = {k: v.num_examples for k, v in builder.info.splits.items()}
  assert counts == wanted.counts
  for split in wanted.counts:
    for example in tfds.as_numpy(builder.as_dataset(split=split)):
      image, label = example["image"], int(example["label"])
      height, width = wanted.size
      assert image.shape == (height, width or 50 + label, 3)
      assert abs(image.astype(int) - 20 * (label + 1)).max() <= 3


@pytest.mark.parametrize(
  ("name", "ours", "train", "test"),
  [
    ("cinic10", "cinic10", 20, 10),
    ("tiny_imagenet", "tiny_imagenet", 6, 3),
    ("fgvc_aircraft", "aircraft", 6, 3),  # with the validation images
    ("stanford_cars", "cars", 4, 4),
  ],
)
def test_loaded_by_the_recipe_of_its_name(
  name, ours, train, test, packed, tmp_path
):
  """From official archives to the arrays that a run trains on."""
  packed(name)
  recipe = finetune.get_config(f"vit,{ours}")
  size, resize = recipe.model.image_size, recipe.resize
  got = load(ours, size, data_dir=str(tmp_path), resize=resize, progress=False)
  wanted = SETS[name]
  assert got.classes == wanted.classes
  assert got.train_images.shape == (train, size, size, 3)
  assert got.test_images.shape == (test, size, size, 3)
  for images, labels in (
    (got.train_images, got.train_labels),
    (got.test_images, got.test_labels),
  ):
    shown = np.asarray(images, int).mean((1, 2, 3)) / 20 - 1
    np.testing.assert_array_equal(shown.round(), labels)
  # The prepared set needs nothing of them any more.
  shutil.rmtree(tmp_path / "downloads")
  loaded = tfds.load(wanted.builder.name, data_dir=tmp_path)
  assert set(loaded) == set(wanted.counts)


@pytest.mark.parametrize("name", SETS)
def test_prepared_from_extracted_folders(name, extracted, tmp_path):
  extracted(name)
  check(name, prepare(name, tmp_path))


@pytest.mark.parametrize("name", DOWNLOADED)
def test_nothing_there_and_no_network(name, tmp_path, manual):
  sentence = refused(name, tmp_path)
  ((archive, folder),) = SETS[name].builder.ARCHIVES.items()
  (info,) = (
    x for x in SETS[name].builder.url_infos.values() if x.filename == archive
  )
  size = f"{info.size / 1e6:,.0f} MB"
  for word in (name, archive, folder, size, manual, NOWHERE, "refused"):
    assert str(word) in sentence


def test_sets_without_a_source_name_what_is_missing(
  extracted, tmp_path, manual
):
  sentence = refused("stanford_cars", tmp_path)
  for archive, folder in StanfordCars.ARCHIVES.items():
    assert archive in sentence
    assert folder in sentence
  extracted("stanford_cars")
  shutil.rmtree(manual / "cars_test")
  (manual / "cars_test_annos_withlabels.mat").unlink()
  sentence = refused("stanford_cars", tmp_path)
  for word in ("cars_test.tgz", "977 MB", "cars_test_annos", str(manual)):
    assert word in sentence
  assert "cars_train" not in sentence
  (manual / "car_ims").mkdir()
  assert "cars_annos.mat into" in refused("stanford_cars", tmp_path)


@pytest.mark.parametrize("name", ["tiny_imagenet", "joint_cars"])
def test_wrong_archives(name, packed, tmp_path, manual):
  packed(name)
  file = manual / [*getattr(SETS[name].builder, SETS[name].archives)][-1]
  (info,) = (
    x for x in SETS[name].builder.url_infos.values() if x.filename == file.name
  )
  whole = file.read_bytes()
  file.write_bytes(whole[:-20])
  sentence = refused(name, tmp_path)
  assert str(file) in sentence
  if info.size:
    assert f"{len(whole) - 20:,} bytes instead of {len(whole):,}" in sentence
  file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  sentence = refused(name, tmp_path)
  assert str(file) in sentence
  assert f"instead of {info.checksum}" in sentence


def test_damaged_archive_leaves_nothing_that_counts(
  packed, tmp_path, manual, publish
):
  name = "cinic10"
  packed(name)
  file = manual / next(iter(SETS[name].builder.ARCHIVES))
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) * 2 // 3])
  publish(name, file)
  assert f"{file} cannot be extracted: " in refused(name, tmp_path)
  file.write_bytes(whole)
  publish(name, file)
  check(name, prepare(name, tmp_path))


@pytest.fixture
def server(tmp_path, monkeypatch):
  """(folder, URL) of a server on this machine; it also counts requests."""
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  folder = tmp_path / "served"
  folder.mkdir()

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  handler = functools.partial(Handler, directory=folder)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_downloaded_where_it_is_published(server, packed, publish, tmp_path):
  folder, url = server
  name, file = "cinic10", folder / "CINIC-10.tar.gz"
  publish(name, url=url)
  assert f"could not download {url}/{file.name}: " in refused(name, tmp_path)
  file.write_text("moved")
  sentence = refused(name, tmp_path)
  assert sentence.startswith(f"{url}/{file.name} is not the official CINIC-10")
  # What was wrong does not count.
  packed(name, folder, url)
  check(name, prepare(name, tmp_path))


# Each with what is done to the extracted set, and what the sentence says.
FAULTS = {
  "cinic10": [
    ("rm CINIC-10/valid/dog", ["valid lacks the class folder dog"]),
    ("mkdir CINIC-10/test/cow", ["test has a folder of no class: cow"]),
    (
      "rm CINIC-10/valid/dog/cifar10-train-1.png",
      ["CINIC-10 has 9 images of validation", "10 were published"],
    ),
    ("empty CINIC-10/test/dog/cifar10-train-1.png", ["1.png is neither a"]),
  ],
  "tiny_imagenet": [
    ("rm tiny-imagenet-200/wnids.txt", ["wnids.txt cannot be read: No such"]),
    (
      "append tiny-imagenet-200/val/val_annotations.txt",
      ["val_annotations.txt has a line of no class: more n0"],
    ),
  ],
  "fgvc_aircraft": [
    (
      "rm fgvc-aircraft-2013b/data/images/0001008.jpg",
      ["0001008.jpg cannot be read: No such file"],
    ),
    (
      "append fgvc-aircraft-2013b/data/images_variant_val.txt",
      ["images_variant_val.txt has a line of no variant: more\tn0"],
    ),
    (
      "cut fgvc-aircraft-2013b/data/images/0001008.jpg",
      ["0001008.jpg is damaged: "],
    ),
  ],
  "stanford_cars": [
    ("cut devkit/cars_train_annos.mat", ["annotations cannot be read from"]),
  ],
}


def damage(place, order):
  """Does to a file or folder below `place` what the order says."""
  verb, path = order.split()
  path = place / path
  if verb == "rm":
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  elif verb == "mkdir":
    path.mkdir()
  elif verb == "empty":
    path.write_bytes(b"")
  elif verb == "append":
    path.write_text(path.read_text() + "more\tn0\n")
  elif verb == "cut":
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
  ("name", "order", "words"),
  [(name, *fault) for name, faults in FAULTS.items() for fault in faults],
)
def test_faults_are_named(name, order, words, extracted, tmp_path):
  damage(extracted(name), order)
  sentence = refused(name, tmp_path)
  for word in words:
    assert word in sentence
  assert str(tmp_path) in sentence


def test_annotations_of_cars_are_checked(extracted, tmp_path):
  file = extracted("stanford_cars") / "devkit" / "cars_train_annos.mat"
  row = {"class": 3, "fname": "00001.jpg"}
  scipy.io.savemat(file, {"annotations": structs([row])})
  assert "gives no class to the image 00001.jpg" in refused(
    "stanford_cars", tmp_path
  )
  scipy.io.savemat(file, {"annotations": structs([{"fname": "00001.jpg"}])})
  assert "lack fname, class" in refused("stanford_cars", tmp_path)
  # A lone annotation is read too.
  scipy.io.savemat(file, {"annotations": structs([row | {"class": 2}])})
  assert "has 1 images of train" in refused("stanford_cars", tmp_path)


@pytest.mark.parametrize(
  ("mode", "subsampling"),
  [("RGB", 0), ("RGB", 2), ("L", 0), ("CMYK", 0)],
)
def test_cutting_the_banner_changes_next_to_nothing(mode, subsampling):
  photograph = datasets.load_sample_image("china.jpg")[:197, :313]
  stored = io.BytesIO()
  image = Image.fromarray(photograph).convert(mode)
  image.save(stored, "JPEG", subsampling=subsampling, quality=80)
  cut = without_banner(stored.getvalue())
  with Image.open(stored) as before, Image.open(io.BytesIO(cut)) as after:
    assert (after.mode, after.size) == (mode, (313, 177))
    assert after.quantization == before.quantization
    want = np.asarray(before.convert("RGB"), int)[:177]
    error = np.asarray(after.convert("RGB"), int) - want
  assert (error**2).mean() < 0.65  # more than 50 dB
  assert len(cut) < len(stored.getvalue())
