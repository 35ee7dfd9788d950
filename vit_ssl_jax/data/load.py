"""Datasets by name: the one description of a run's images."""

import contextlib
import dataclasses
import os

import numpy as np

from vit_ssl_jax import cli
from vit_ssl_jax.data import batches, cache, registry, splits
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts

# Random streams, one for each split.
VAL, FRACTION = 1, 2
PARTS = {"train": "training", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of `load`; those of `KEYS` are config keys."""

  # Splits of a TFDS dataset in its notation, such as train[:10%]; "" is the
  # paper's split, and no validation part.
  train_split: str = ""
  val_split: str = ""
  test_split: str = ""
  resize: str = "crop"  # or "squash", see `pixels.decode`
  # Share of every class that a folder without parts keeps for testing, (0, 1).
  test_fraction: float = 0.2
  # Share of every class's training images held out for validation, [0, 1).
  val_fraction: float = 0.0
  # Share of every class's training images to keep, (0, 1].
  data_fraction: float = 1.0
  skip_broken_images: bool = False
  # Of the channels, in [0, 1]; () is published or computed.
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  data_dir: str | None = None  # TFDS's; None is $TFDS_DATA_DIR or its default
  seed: int = 0  # of all splits
  progress: bool = True  # show progress bars


# Config keys that `load` takes under the same name; the others have their own.
OTHERS = ("data_dir", "seed", "progress")
FIELDS = [x.name for x in dataclasses.fields(Options)]
KEYS = tuple(name for name in FIELDS if name not in OTHERS)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A labelled dataset of square RGB images, decoded.

  Images are (N, S, S, 3) uint8, read lazily from the cache (`numpy.memmap` or
  `cache.Rows`; `numpy.asarray` copies them); labels are (N,) int32 indices of
  `classes`, fingerprints (N,) uint64 of `pixels.decode_all`. A missing
  validation part has empty arrays.
  """

  name: str
  train_images: np.ndarray | cache.Rows
  train_labels: np.ndarray
  train_fingerprints: np.ndarray
  val_images: np.ndarray | cache.Rows
  val_labels: np.ndarray
  val_fingerprints: np.ndarray
  test_images: np.ndarray | cache.Rows
  test_labels: np.ndarray
  test_fingerprints: np.ndarray
  classes: tuple[str, ...]
  mean: tuple[float, ...]  # of the training images' channels, in [0, 1]
  std: tuple[float, ...]
  whole_train_size: int  # training images before `data_fraction`
  broken: dict[str, str]  # file -> reason, of images that were skipped


def load(name: str, image_size: int, **options) -> Dataset:
  """Loads a dataset, resized to `image_size`.

  Args:
    name: one of `registry.SETS`, `npz:/path/file.npz` or `folder:/path`.
    image_size: S.
    **options: fields of `Options`.
  """
  options = Options(**options)
  entry = registry.get(name)
  path = os.path.expanduser(name.partition(":")[2])
  # A source gives part -> `cache.Decoded` ("train", "test" and maybe "val"; -1
  # labels rows of no part) and the names of the classes.
  if entry is not registry.OWN:
    from vit_ssl_jax.data import tfds_sets

    parts, classes = tfds_sets.read(name, image_size, options)
  else:
    for part in PARTS:
      value = getattr(options, f"{part}_split")
      if value not in ("", part):
        raise UserError(
          f"{part}_split must be '' for {name}, which has no TFDS splits, not"
          f" {value!r}"
        )
    if name.startswith(registry.NPZ):
      from vit_ssl_jax.data import npz as source
    else:
      from vit_ssl_jax.data import folder as source
    parts, classes = source.read(path, image_size, options)
  parts = {k: part.take(part.labels >= 0) for k, part in parts.items()}
  mean, std = options.mean or entry.mean, options.std or entry.std
  if not (mean and std):
    from vit_ssl_jax.data import statistics

    computed = statistics.cached(parts["train"].images, options.progress)
    mean, std = mean or computed[0], std or computed[1]
  parts, size = split(name, parts, options)
  return Dataset(
    name=name,
    classes=classes,
    mean=tuple(mean),
    std=tuple(std),
    whole_train_size=size,
    broken={k: v for part in parts.values() for k, v in part.broken.items()},
    **arrays(parts),
  )


def arrays(parts):
  """Fields of a `Dataset`: part_field -> array."""
  return {
    f"{name}_{field}": getattr(part, field)
    for name, part in parts.items()
    for field in ("images", "labels", "fingerprints")
  }


def split(name, parts, options):
  """The parts after both fractions; the training images before the second."""
  train, seed = parts["train"], options.seed
  if options.val_fraction and "val" in parts:
    raise UserError(
      f"val_fraction must be 0 for {name}, which has validation images of its"
      f" own, not {options.val_fraction}"
    )
  if "val" not in parts:
    mask = np.zeros(len(train.labels), bool)
    if options.val_fraction:
      mask = splits.held_out(
        train.labels, train.fingerprints, options.val_fraction, seed, VAL
      )
    parts = parts | {"val": train.take(mask), "train": train.take(~mask)}
    train = parts["train"]
  size = len(train.labels)
  if options.data_fraction < 1:
    rows = splits.stratified(
      train.labels, train.fingerprints, options.data_fraction, seed, FRACTION
    )
    mask = np.isin(np.arange(size), rows)
    parts = parts | {"train": train.take(mask)}
  return parts, size


def load_config(config) -> Dataset:
  """Loads a config's dataset, on the first process first.

  The others find what it prepared, or, with other disks, prepare it in turn.
  """
  for turn in (True, False):
    with hosts.sync_errors(), contextlib.ExitStack() as stack:
      if hosts.is_primary() != turn:
        continue
      if not turn:
        stack.enter_context(cache.in_turn())
      dataset = load(
        config.dataset,
        config.model.image_size,
        data_dir=config.data_dir or None,
        seed=config.split_seed,
        progress=turn,
        **{key: config[key] for key in KEYS},
      )
  return dataset


def open_data(config, mesh, dataset=None):
  """Loads and describes a config's dataset, unless it is given.

  Returns:
    The config with the dataset's statistics, the `Dataset`, and a
    `batches.Source` of training batches.
  """
  if dataset is None:
    dataset = load_config(config)
  config = config.copy_and_resolve_references()
  with config.ignore_type():  # lists, if read from JSON
    config.update(mean=dataset.mean, std=dataset.std)
  placement = config.placement
  if placement == "auto":
    nbytes = dataset.train_images.nbytes
    placement = batches.auto_placement(nbytes, config.memory_share, mesh)
  whole = config.data_fraction_keeps == "steps"
  source = batches.make_source(
    dataset.train_images,
    dataset.train_labels,
    config.batch_size,
    seed=config.seed,
    placement=placement,
    epoch_images=dataset.whole_train_size if whole else None,
    fingerprints=dataset.train_fingerprints,
    mesh=mesh,
  )
  for line in describe(dataset, source.placement):
    cli.log(line)
  return config, dataset, source


def describe(dataset, placement):
  """Yields lines on a dataset's size, placement, overlaps and broken images."""
  marks = {part: getattr(dataset, f"{part}_fingerprints") for part in PARTS}
  counts = [
    f"{len(marks[part]):,} {word}"
    for part, word in PARTS.items()
    if len(marks[part])
  ]
  size = dataset.train_images.shape[1]
  yield (
    f"{dataset.name}: {', '.join(counts)} images of {size} x {size} in"
    f" {len(dataset.classes)} classes; the training images take"
    f" {dataset.train_images.nbytes / 1e6:,.1f} MB,"
    f" {batches.PLACEMENTS[placement]}"
  )
  for part in ("val", "test"):
    if shared := np.isin(marks[part], marks["train"]).sum():
      yield (
        f"warning: {shared:,} of the {len(marks[part]):,} {PARTS[part]} images"
        " are among the training images too"
      )
  if broken := [f"{name} ({why})" for name, why in dataset.broken.items()]:
    more = ", ..." if len(broken) > 10 else ""
    yield f"skipped {len(broken)} broken images: {', '.join(broken[:10])}{more}"
