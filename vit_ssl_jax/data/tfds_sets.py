"""Sets that tensorflow-datasets keeps, decoded once and cached as arrays."""

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
TIMEOUT = 10  # seconds for a server to answer


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

  TensorFlow is imported only for what the cache does not hold yet. Arguments
  are those of `load.load`, with the splits by "train", "val" and "test".

  Returns:
    The parts, and the names of the classes.

  Raises:
    UserError: the set is neither there nor to be had, its files are damaged, or
      it has no such split.
  """
  known = registry.SETS[name]
  root = data_root(data_dir)
  folder = prepared(name, root) or prepare(name, root, progress)
  chosen = splits | {
    "train": splits["train"] or known.train_split,
    "test": splits["test"] or known.test_split,
  }
  parts = {
    part: read_split(name, folder, split, image_size, resize, progress)
    for part, split in chosen.items()
    if split
  }
  return parts, class_names(folder)


def data_root(data_dir: str | None) -> epath.Path:
  """TFDS's data directory, where None or \"\" is its default."""
  chosen = data_dir or os.environ.get("TFDS_DATA_DIR")
  chosen = chosen or "~/tensorflow_datasets"
  if "://" not in chosen:
    chosen = os.path.realpath(os.path.expanduser(chosen))
  return epath.Path(chosen)


def prepared(name: str, root: epath.Path) -> epath.Path | None:
  """The set's prepared directory, root/NAME/VERSION; the newest if several."""
  places = [root, own_root()] if name == "digits" else [root]
  for place in places:
    folder = place / registry.SETS[name].tfds_name
    found = [
      child
      for child in (folder.iterdir() if folder.is_dir() else ())
      if re.fullmatch(r"\d+\.\d+\.\d+", child.name)
      and (child / "dataset_info.json").exists()
    ]
    if found:
      return max(found, key=lambda p: [int(x) for x in p.name.split(".")])
  return None


def own_root() -> epath.Path:
  """Where digits, which need no source, are put if nothing else will do."""
  return epath.Path(files.cache_directory("tfds"))


def class_names(folder: epath.Path) -> tuple[str, ...]:
  names = folder / "label.labels.txt"
  if names.exists():
    return tuple(names.read_text().split("\n")[:-1])
  # A set whose classes are numbers keeps their count alone.
  features = json.loads((folder / "features.json").read_text())
  label = features["featuresDict"]["features"]["label"]["classLabel"]
  return tuple(str(i) for i in range(int(label["numClasses"])))


def prepare(name: str, root: epath.Path, progress: bool) -> epath.Path:
  """Generates or downloads the set into `root`; returns its directory."""
  if name == "digits" and not writable(root):
    root = own_root()
  try:
    if not writable(root):
      raise OSError("the directory is read-only")
    if host := registry.SETS[name].host:
      check_answers(host)
    generate(name, root, progress)
  except UserError:
    raise
  except Exception as error:
    # Another process may have prepared it meanwhile.
    if not prepared(name, root):
      why = getattr(error, "reason", error)
      raise unprepared(name, root, why) from error
  return prepared(name, root)


def generate(name: str, root: epath.Path, progress: bool) -> None:
  """Lets TFDS prepare a set; a failure leaves no empty folders."""
  tensorflow()
  import tensorflow_datasets as tfds

  known = registry.SETS[name]
  if not known.host:
    import vit_ssl_jax.data.builders  # noqa: F401
  if progress:
    cli.log(f"preparing {name} in {root}")
  if not (progress and sys.stderr.isatty()):
    tfds.disable_progress_bar()
  try:
    tfds.builder(known.tfds_name, data_dir=root).download_and_prepare()
  except Exception:
    for folder in ("downloads/extracted", "downloads", known.tfds_name, ""):
      with contextlib.suppress(OSError):  # it is not empty
        (root / folder).rmdir()
    raise


def writable(root: epath.Path) -> bool:
  """Whether `root`, or the directory it would be made in, lets us write."""
  if "://" in os.fspath(root):
    return True
  while not root.exists():
    root = root.parent
  # The mode says read-only to root too, to whom os.access never does.
  return bool(root.stat().mode & 0o222) and os.access(root, os.W_OK)


def check_answers(url: str) -> None:
  """Raises OSError where no server answers: TFDS would retry for minutes."""
  request = urllib.request.Request(url, method="HEAD")
  try:
    urllib.request.urlopen(request, timeout=TIMEOUT).close()
  except urllib.error.HTTPError as error:
    error.close()
    if error.code >= 500:  # others may be to the method alone
      raise


def unprepared(name: str, root: epath.Path, why) -> UserError:
  why = line(why)
  advice = "set TFDS_DATA_DIR or --config.data_dir to a directory that "
  if registry.SETS[name].host:
    tfds_name = registry.SETS[name].tfds_name
    advice += f"holds it, made with `tfds build {tfds_name}"
    advice += " --data_dir=DIRECTORY` where there is a network."
  else:
    advice += "can be written."
  return UserError(
    f'The data set "{name}" is not in {root} and could not be prepared there '
    f"({why}): {advice}"
  )


def read_split(name, folder, split, image_size, resize, progress):
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
        f'The split "{split}" selects nothing from {name}, which has '
        f"{', '.join(builder.info.splits)}; part of one is, e.g., train[:10%]."
      )
    labels = []
    files = stored_images(builder, folder, split, count, labels)
    return cache.Stored(count, files, labels)

  times = [
    (folder / file).stat().mtime
    for file in ("dataset_info.json", "features.json")
  ]
  key = (os.fspath(folder), times, split)
  stem = f"{name}-{folder.name}"
  found = cache.decoded(stem, key, image_size, resize, find, progress)
  if found.broken:
    raise UserError(
      f"{folder} holds {len(found.broken)} images that cannot be read; the"
      f" first: {next(iter(found.broken.values()))}."
    )
  return found


def stored_images(builder, folder, split, count, labels):
  """Yields a split's encoded images; appends what they show to `labels`."""
  tf = tensorflow()
  import tensorflow_datasets as tfds

  # One file after the other, so that the order is always the same.
  config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  try:
    stored = builder.as_dataset(
      split=split,
      read_config=config,
      decoders={"image": tfds.decode.SkipDecoding()},
    )
    for batch in stored.batch(READ_BATCH).prefetch(2).as_numpy_iterator():
      labels.extend(batch["label"].tolist())
      yield from batch["image"]
  except tf.errors.OpError as error:
    why = error.message.splitlines()[0].rstrip(".")
    raise UserError(f"{folder} cannot be read: {why}.") from error
  if len(labels) != count:
    raise UserError(
      f"{folder} is damaged: it has {len(labels)} images of {split}, not"
      f" {count}."
    )


def tensorflow():
  """Imports TensorFlow, quiet and kept off the accelerator."""
  with contextlib.ExitStack() as stack:
    if "tensorflow" not in sys.modules:
      # Its C++ side says how it was built, whatever TF_CPP_MIN_LOG_LEVEL is.
      saved = os.dup(2)
      stack.callback(os.close, saved)
      stack.callback(os.dup2, saved, 2)
      with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    import tensorflow as tf

    # It would take all of the GPU's memory, which JAX needs.
    tf.config.set_visible_devices([], "GPU")
  return tf
