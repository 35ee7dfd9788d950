"""TFDS datasets, prepared if need be, decoded once and cached."""

import contextlib
import json
import os
import re
import sys
import urllib.error
import urllib.request

from etils import epath

from vit_ssl_jax import cli, files
from vit_ssl_jax.data import cache, registry
from vit_ssl_jax.errors import UserError, line

READ_BATCH = 64
TIMEOUT = 10  # seconds


def read(name, size, options):
  """Reads the splits that `options` names, or the registry's."""
  entry, root = registry.SETS[name], data_root(options.data_dir)
  folder = prepared(name, root) or prepare(name, root, options.progress)
  splits = {
    "train": options.train_split or entry.train_split,
    "val": options.val_split,
    "test": options.test_split or entry.test_split,
  }
  parts = {
    part: read_split(name, folder, split, size, options)
    for part, split in splits.items()
    if split
  }
  return parts, class_names(folder)


def data_root(data_dir):
  """TFDS's data directory; None or "" is its default."""
  root = data_dir or os.environ.get("TFDS_DATA_DIR")
  root = root or "~/tensorflow_datasets"
  if "://" not in root:
    root = os.path.realpath(os.path.expanduser(root))
  return epath.Path(root)


def prepared(name, root):
  """The newest prepared version, root/NAME/VERSION, if there is one."""
  for place in [root, digits_root()] if name == "digits" else [root]:
    folder = place / registry.SETS[name].tfds_name
    versions = [
      child
      for child in (folder.iterdir() if folder.is_dir() else ())
      if re.fullmatch(r"\d+\.\d+\.\d+", child.name)
      and (child / "dataset_info.json").exists()
    ]
    if versions:
      return max(versions, key=lambda p: [int(x) for x in p.name.split(".")])
  return None


def digits_root():
  """Place of digits where the data directory cannot be written."""
  return epath.Path(files.cache_directory("tfds"))


def class_names(folder):
  names = folder / "label.labels.txt"
  if names.exists():
    return tuple(names.read_text().split("\n")[:-1])
  # Unnamed classes: TFDS keeps only their number.
  features = json.loads((folder / "features.json").read_text())
  label = features["featuresDict"]["features"]["label"]["classLabel"]
  return tuple(str(i) for i in range(int(label["numClasses"])))


def prepare(name, root, progress):
  """Generates or downloads a dataset into `root`; returns its folder."""
  entry, need = registry.SETS[name], "can be written"
  if entry.host:
    need = f"`tfds build {entry.tfds_name} --data_dir=DIRECTORY` filled"
  if name == "digits" and not writable(root):
    root = digits_root()
  try:
    if not writable(root):
      raise OSError("the directory is read-only")
    if entry.host:
      check_answers(entry.host)
    generate(name, root, progress)
  except UserError:
    raise
  except Exception as error:
    if not prepared(name, root):  # by another process, meanwhile
      raise UserError(
        f"dataset {name!r} is not in {root} and could not be prepared there"
        f" ({line(getattr(error, 'reason', error))}): set TFDS_DATA_DIR or"
        f" --config.data_dir to a directory that {need}"
      ) from error
  return prepared(name, root)


def generate(name, root, progress):
  """Prepares a dataset by TFDS; a failure leaves no empty folders."""
  tensorflow()
  import tensorflow_datasets as tfds

  entry = registry.SETS[name]
  if not entry.host:
    import vit_ssl_jax.data.builders  # noqa: F401
  if progress:
    cli.log(f"preparing {name} in {root}")
  if not (progress and sys.stderr.isatty()):
    tfds.disable_progress_bar()
  try:
    tfds.builder(entry.tfds_name, data_dir=root).download_and_prepare()
  except Exception:
    for folder in ("downloads/extracted", "downloads", entry.tfds_name, ""):
      with contextlib.suppress(OSError):  # not empty
        (root / folder).rmdir()
    raise


def writable(root):
  """True if `root`, or its nearest existing parent, is writable."""
  if "://" in os.fspath(root):
    return True
  while not root.exists():
    root = root.parent
  # The mode counts for root too, whom os.access always lets write.
  return bool(root.stat().mode & 0o222) and os.access(root, os.W_OK)


def check_answers(url):
  """Raises OSError if no server answers; TFDS would retry for minutes."""
  request = urllib.request.Request(url, method="HEAD")
  try:
    urllib.request.urlopen(request, timeout=TIMEOUT).close()
  except urllib.error.HTTPError as error:
    error.close()
    if error.code >= 500:  # others may only refuse the method
      raise


def read_split(name, folder, split, size, options):
  """A split's `cache.Decoded`, in the stored order."""

  def find():
    tensorflow()
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    try:
      count = builder.info.splits[split].num_examples
    except (KeyError, ValueError):
      count = 0
    if not count:
      raise UserError(
        f"split {split!r} of {name} is empty or unknown; its splits are"
        f" {', '.join(builder.info.splits)}, or a part, such as train[:10%]"
      )
    labels = []
    images = stored_images(builder, folder, split, count, labels)
    return count, images, labels

  about = folder / "dataset_info.json", folder / "features.json"
  times = [file.stat().mtime for file in about]
  key = (os.fspath(folder), times, split)
  stem = f"{name}-{folder.name}"
  part = cache.decoded(stem, key, size, options, find)
  if part.broken:
    why = next(iter(part.broken.values()))
    raise UserError(f"{folder} holds {len(part.broken)} broken images: {why}")
  return part


def stored_images(builder, folder, split, count, labels):
  """Yields a split's encoded images; appends their labels to `labels`."""
  tf = tensorflow()
  import tensorflow_datasets as tfds

  # One file after the other, so that the order is always the same.
  config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  try:
    examples = builder.as_dataset(
      split=split,
      read_config=config,
      decoders={"image": tfds.decode.SkipDecoding()},
    )
    for batch in examples.batch(READ_BATCH).prefetch(2).as_numpy_iterator():
      labels.extend(batch["label"].tolist())
      yield from batch["image"]
  except tf.errors.OpError as error:
    why = error.message.splitlines()[0].rstrip(".")
    raise UserError(f"{folder} cannot be read: {why}") from error
  if len(labels) != count:
    raise UserError(
      f"{folder} is damaged: {split} has {len(labels)} of {count} images"
    )


def tensorflow():
  """Imports TensorFlow, silenced and kept off the accelerator."""
  with contextlib.ExitStack() as stack:
    if "tensorflow" not in sys.modules:
      # Its C++ code logs whatever TF_CPP_MIN_LOG_LEVEL is.
      saved = os.dup(2)
      stack.callback(os.close, saved)
      stack.callback(os.dup2, saved, 2)
      with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    import tensorflow as tf

    # It would take all of the GPU's memory, which JAX needs.
    tf.config.set_visible_devices([], "GPU")
  return tf
