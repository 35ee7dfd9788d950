"""Sets that tensorflow-datasets keeps, decoded once and cached as arrays."""

import contextlib
import difflib
import hashlib
import json
import os
import re
import sys
import urllib.error
import urllib.request

import numpy as np
from etils import epath

from vit_ssl_jax import cli
from vit_ssl_jax.cli import UserError
from vit_ssl_jax.data import cache
from vit_ssl_jax.data.pixels import decode_all
from vit_ssl_jax.data.registry import DIGITS, SETS

READ_BATCH = 64
# Part of the cache's key: raise it when decoding changes.
CACHE_FORMAT = 3


def read(
  name: str,
  image_size: int,
  splits: dict[str, str],
  *,
  resize: str,
  data_dir: str | None,
  progress: bool,
) -> tuple[dict[str, cache.Decoded], tuple[str, ...]]:
  """Reads a set's parts, preparing the set if need be.

  TensorFlow is imported only for what the cache does not hold yet.

  Args:
    name: one of `SETS`.
    image_size: S.
    splits: the splits in TFDS's notation of "train", "val" and "test"; "" is
      the set's own, or none.
    resize: one of `pixels.RESIZES`.
    data_dir: where TFDS keeps its sets.
    progress: whether slow work shows a bar.

  Returns:
    The parts, and the names of the classes.

  Raises:
    UserError: the name is unknown, the set is neither there nor to be had, its
      files are damaged, or it has no such split.
  """
  check_name(name)
  root = data_root(data_dir)
  folder = _find(name, root) or _prepare(name, root, progress)
  own = {"train": SETS[name].train_split, "test": SETS[name].test_split}
  chosen = {part: split or own.get(part) for part, split in splits.items()}
  parts = {}
  for part, split in chosen.items():
    if split:
      parts[part] = _read_split(
        name, folder, split, image_size, resize, progress
      )
  return parts, _classes(folder)


def check_name(name: str) -> None:
  """Raises UserError unless `name` is one of `SETS`."""
  if name in SETS:
    return
  known = ", ".join([*SETS, "npz:/path/file.npz", "folder:/path"])
  near = difflib.get_close_matches(name, SETS, n=1)
  hint = f' (did you mean "{near[0]}"?)' if near else ""
  raise UserError(f'There is no data set "{name}"{hint}; there are {known}.')


def data_root(data_dir: str | None) -> epath.Path:
  """TFDS's data directory, where None or \"\" is its default."""
  chosen = data_dir or os.environ.get("TFDS_DATA_DIR")
  chosen = chosen or "~/tensorflow_datasets"
  if "://" not in chosen:
    chosen = os.path.realpath(os.path.expanduser(chosen))
  return epath.Path(chosen)


def _find(name: str, root: epath.Path) -> epath.Path | None:
  """The set's prepared directory, root/NAME/VERSION; the newest if several."""
  roots = [root]
  if name == DIGITS:
    roots.append(epath.Path(cache.directory("tfds")))
  for place in roots:
    folder = place / SETS[name].tfds_name
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
  if name == DIGITS:
    if not _writable(root):
      root = epath.Path(cache.directory("tfds"))
  elif not _writable(root):
    raise _unprepared(name, root, "the directory is read-only")
  elif SETS[name].host:
    _check_download(name, root)
  tensorflow()
  import tensorflow_datasets as tfds

  if not SETS[name].host:
    from vit_ssl_jax.data import builders as builders

  if progress:
    cli.say(f"preparing {name} in {root}")
  if not (progress and sys.stderr.isatty()):
    tfds.disable_progress_bar()
  try:
    tfds.builder(SETS[name].tfds_name, data_dir=root).download_and_prepare()
  except Exception as error:
    # Another process may have prepared it meanwhile.
    if found := _find(name, root):
      return found
    made = ["downloads/extracted", "downloads", SETS[name].tfds_name, ""]
    for folder in made:  # that are empty, and that TFDS has made
      with contextlib.suppress(OSError):
        (root / folder).rmdir()
    if isinstance(error, UserError):
      raise
    raise _unprepared(name, root, error) from error
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
  try:
    request = urllib.request.Request(SETS[name].host, method="HEAD")
    urllib.request.urlopen(request, timeout=10).close()
  except urllib.error.HTTPError:
    pass  # somebody answered
  except OSError as error:
    raise _unprepared(name, root, getattr(error, "reason", error)) from error


def _unprepared(name: str, root: epath.Path, why) -> UserError:
  why = " ".join(str(why).split()).rstrip(".")[:200]
  advice = "set TFDS_DATA_DIR or --config.data_dir to a directory that "
  if not SETS[name].host:
    advice += "can be written."
  else:
    command = f"tfds build {SETS[name].tfds_name} --data_dir=DIRECTORY"
    advice += f"holds it, made with `{command}` where there is a network."
  return UserError(
    f'The data set "{name}" is not in {root} and could not be prepared there '
    f"({why}): {advice}"
  )


def _read_split(name, folder, split, image_size, resize, progress):
  """A split's `cache.Decoded`, in the stored order."""
  files = ("dataset_info.json", "features.json")
  times = [(folder / f).stat().mtime for f in files]
  key = repr((CACHE_FORMAT, os.fspath(folder), times, split, resize))
  digest = hashlib.sha256(key.encode()).hexdigest()[:16]
  stem = f"{name}-{folder.name}-{image_size}-{digest}"
  if found := cache.find(stem):
    return found
  tensorflow()
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

  def fill(images):
    labels = []
    try:
      fingerprints, broken = decode_all(
        images,
        _stored(builder, split, labels),
        resize,
        label=f"decoding {name} {split}",
        progress=progress,
      )
    except ValueError as error:
      raise UserError(f"{folder} is damaged: {error}.") from error
    if broken:
      raise UserError(
        f"{folder} holds {len(broken)} images that cannot be read; the first:"
        f" {next(iter(broken.values()))}."
      )
    return np.array(labels, np.int32), fingerprints, {}

  shape = (count, image_size, image_size, 3)
  try:
    return cache.decoded(stem, shape, fill)
  except tensorflow().errors.OpError as error:
    why = error.message.splitlines()[0].rstrip(".")
    raise UserError(f"{folder} cannot be read: {why}.") from error


def _stored(builder, split, labels):
  """Yields the encoded images of a split; appends their labels to `labels`."""
  import tensorflow_datasets as tfds

  # One file after the other, so that the order is always the same.
  config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  stored = builder.as_dataset(
    split=split,
    read_config=config,
    decoders={"image": tfds.decode.SkipDecoding()},
  )
  for batch in stored.batch(READ_BATCH).prefetch(2).as_numpy_iterator():
    labels.extend(batch["label"].tolist())
    yield from batch["image"]


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
