"""Sets that tensorflow-datasets keeps, decoded once and cached as arrays."""

import difflib
import hashlib
import json
import os
import re
import sys
import urllib.error
import urllib.request

import numpy as np
import tqdm
from etils import epath

from vit_ssl_jax.data import cache
from vit_ssl_jax.data.pixels import bar_off, square_rgb
from vit_ssl_jax.errors import UserError

# Our name -> TFDS's name, and the host it is downloaded from.
SETS = {
  "cifar10": ("cifar10", "https://www.cs.toronto.edu"),
  "cifar100": ("cifar100", "https://www.cs.toronto.edu"),
  "svhn": ("svhn_cropped", "http://ufldl.stanford.edu"),
  "digits": ("digits", None),
}
LATER = ("cinic10", "tiny_imagenet", "aircraft", "cars")
DECODE_BATCH = 512
# Part of the cache's key: raise it when decoding changes.
CACHE_FORMAT = 1


def read(
  name: str,
  image_size: int,
  train_split: str,
  *,
  data_dir: str | None,
  progress: bool,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Reads a set's training and test images, preparing the set if need be.

  TensorFlow is imported only for what the cache does not hold yet.

  Returns:
    train_images and test_images, (N, S, S, 3) uint8; train_labels and
    test_labels, (N,) int32; and the names of the classes.

  Raises:
    UserError: the name is unknown, the set is neither there nor to be had, its
      files are damaged, or it has no such split.
  """
  check_name(name)
  root = _root(data_dir)
  folder = _find(name, root) or _prepare(name, root, progress)
  arrays = {}
  for part, split in (("train", train_split), ("test", "test")):
    got = _read_split(name, folder, split, image_size, progress)
    arrays[f"{part}_images"] = got["images"]
    arrays[f"{part}_labels"] = got["labels"]
  return arrays, _classes(folder)


def check_name(name: str) -> None:
  """Raises UserError unless `name` is one of `SETS`."""
  if name in SETS:
    return
  known = ", ".join([*SETS, "npz:/path/file.npz"])
  if name in LATER or name.startswith("folder:"):
    raise UserError(
      f'The data set "{name}" is not yet supported; there are {known}.'
    )
  near = difflib.get_close_matches(name, SETS, n=1)
  hint = f' (did you mean "{near[0]}"?)' if near else ""
  raise UserError(f'There is no data set "{name}"{hint}; there are {known}.')


def _root(data_dir: str | None) -> epath.Path:
  chosen = data_dir or os.environ.get("TFDS_DATA_DIR")
  chosen = chosen or "~/tensorflow_datasets"
  if "://" not in chosen:
    chosen = os.path.realpath(os.path.expanduser(chosen))
  return epath.Path(chosen)


def _find(name: str, root: epath.Path) -> epath.Path | None:
  """The set's prepared directory, root/NAME/VERSION; the newest if several."""
  roots = [root]
  if name == "digits":
    roots.append(epath.Path(cache.directory("tfds")))
  for place in roots:
    folder = place / SETS[name][0]
    found = [
      child
      for child in (folder.iterdir() if folder.is_dir() else ())
      if re.fullmatch(r"\d+\.\d+\.\d+", child.name)
      and (child / "dataset_info.json").exists()
    ]
    if found:
      return max(found, key=lambda p: [int(x) for x in p.name.split(".")])
  return None


def _classes(folder: epath.Path) -> tuple[str, ...]:
  names = folder / "label.labels.txt"
  if names.exists():
    return tuple(names.read_text().split("\n")[:-1])
  # A set whose classes are numbers keeps their count alone.
  features = json.loads((folder / "features.json").read_text())
  label = features["featuresDict"]["features"]["label"]["classLabel"]
  return tuple(str(i) for i in range(int(label["numClasses"])))


def _prepare(name: str, root: epath.Path, progress: bool) -> epath.Path:
  """Generates or downloads the set into `root`; returns its directory."""
  if name == "digits":
    if not _writable(root):
      root = epath.Path(cache.directory("tfds"))
  else:
    _check_download(name, root)
  tensorflow()
  import tensorflow_datasets as tfds

  if name == "digits":
    from vit_ssl_jax.data import digits as digits  # registers the builder
  if not (progress and sys.stderr.isatty()):
    tfds.disable_progress_bar()
  try:
    tfds.builder(SETS[name][0], data_dir=root).download_and_prepare()
  except Exception as error:
    # Another process may have prepared it meanwhile.
    found = _find(name, root)
    if found is None:
      raise _unprepared(name, root, error) from error
    return found
  return _find(name, root)


def _writable(root: epath.Path) -> bool:
  """Whether `root`, or the directory it would be made in, lets us write."""
  if "://" in os.fspath(root):
    return True
  while not root.exists():
    root = root.parent
  # The mode says read-only to root too, to whom os.access never does.
  return bool(root.stat().mode & 0o222) and os.access(root, os.W_OK)


def _check_download(name: str, root: epath.Path) -> None:
  # TFDS itself would retry for minutes without a network.
  if not _writable(root):
    raise _unprepared(name, root, "the directory is read-only")
  try:
    request = urllib.request.Request(SETS[name][1], method="HEAD")
    urllib.request.urlopen(request, timeout=10).close()
  except urllib.error.HTTPError:
    pass  # somebody answered
  except OSError as error:
    raise _unprepared(name, root, getattr(error, "reason", error)) from error


def _unprepared(name: str, root: epath.Path, why) -> UserError:
  why = " ".join(str(why).split()).rstrip(".")[:200]
  advice = "set TFDS_DATA_DIR or --config.data_dir to a directory that "
  if name == "digits":
    advice += "can be written."
  else:
    command = f"tfds build {SETS[name][0]} --data_dir=DIRECTORY"
    advice += f"holds it, made with `{command}` where there is a network."
  return UserError(
    f'The data set "{name}" is not in {root} and could not be prepared there '
    f"({why}): {advice}"
  )


def _read_split(name, folder, split, image_size, progress):
  """{"images": (N, S, S, 3) uint8, "labels": (N,) int32} of one split."""
  files = ("dataset_info.json", "features.json")
  times = [(folder / f).stat().mtime for f in files]
  key = repr((CACHE_FORMAT, os.fspath(folder), times, split))
  digest = hashlib.sha256(key.encode()).hexdigest()[:16]

  def make():
    images, labels = _decode(name, folder, split, progress)
    images = square_rgb(images, image_size, progress=progress)
    return {"images": images, "labels": labels}

  stem = f"{name}-{folder.name}-{image_size}-{digest}"
  return cache.arrays(cache.directory("decoded"), stem, make)


def _decode(name, folder, split, progress):
  """(N, H, W, C) uint8 images and (N,) int32 labels, in the stored order."""
  tf = tensorflow()
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(folder)
  try:
    count = builder.info.splits[split].num_examples
  except (KeyError, ValueError):
    count = 0
  if not count:
    raise UserError(
      f'The split "{split}" selects nothing from {name}, which has '
      f"{', '.join(builder.info.splits)}; part of one is, e.g., train[:10%]."
    )
  images = np.empty((count, *builder.info.features["image"].shape), np.uint8)
  labels = np.empty((count,), np.int32)
  # One file after the other; only the decoding is parallel.
  config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  wanted = tfds.decode.PartialDecoding({"image": True, "label": True})
  stored = builder.as_dataset(split=split, read_config=config, decoders=wanted)
  batches = stored.batch(DECODE_BATCH).prefetch(2)
  done = 0
  label = f"decoding {name} {split}"
  try:
    with tqdm.tqdm(
      total=count,
      desc=label,
      unit="image",
      leave=False,
      disable=bar_off(progress),
    ) as bar:
      for batch in batches.as_numpy_iterator():
        here = slice(done, done + len(batch["label"]))
        images[here], labels[here] = batch["image"], batch["label"]
        bar.update(here.stop - done)
        done = here.stop
  except tf.errors.OpError as error:
    why = error.message.splitlines()[0].rstrip(".")
    raise UserError(f"{folder} cannot be read: {why}.") from error
  return images, labels


def tensorflow():
  """Imports TensorFlow, quiet and kept off the accelerator."""
  # Its C++ side reports every missing GPU library; "1" is what JAX sets. What
  # the user chose otherwise stays.
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  import tensorflow as tf

  # It would take all of the GPU's memory, which JAX needs.
  tf.config.set_visible_devices([], "GPU")
  return tf
