"""A run's data set, as its config describes it."""

import contextlib

import numpy as np
from jax.sharding import Mesh

from vit_ssl_jax import cli
from vit_ssl_jax.data import batches, cache
from vit_ssl_jax.data.load import load as load_set
from vit_ssl_jax.parallel import hosts

# What of a config `load.load` takes under the same name.
KEYS = (
  "train_split",
  "val_split",
  "test_split",
  "resize",
  "test_fraction",
  "val_fraction",
  "data_fraction",
  "skip_broken_images",
  "mean",
  "std",
)
PARTS = {"train": "training", "val": "validation", "test": "test"}


def open_data(config, mesh, dataset=None):
  """Loads a config's data set, where it is not given, and says what it is.

  Returns:
    The config with the mean and standard deviation that it left to the set, a
    `load.Dataset`, and a `batches.Source` of training batches.

  Raises:
    UserError: as of `load.load` and `batches.make_source`.
  """
  if dataset is None:
    dataset = load(config)
  config = config.copy_and_resolve_references()
  with config.ignore_type():  # lists, where it was read from JSON
    config.update(mean=dataset.mean, std=dataset.std)
  whole = config.data_fraction_keeps == "steps"
  chosen = config.placement
  if chosen == "auto":
    nbytes = dataset.train_images.nbytes
    chosen = placement(nbytes, config.memory_share, mesh)
  source = batches.make_source(
    dataset.train_images,
    dataset.train_labels,
    config.batch_size,
    seed=config.seed,
    placement=chosen,
    epoch_images=dataset.whole_train_size if whole else None,
    fingerprints=dataset.train_fingerprints,
    mesh=mesh,
  )
  for line in describe(dataset, source):
    cli.log(line)
  return config, dataset, source


def load(config):
  """A config's `load.Dataset`.

  The first process goes first: what it prepares and decodes the others find,
  or, where they do not share its disks, do one by one on each machine.
  """
  for turn in (True, False):
    with hosts.sync_errors(), contextlib.ExitStack() as stack:
      if hosts.is_primary() != turn:
        continue
      if not turn:
        stack.enter_context(cache.in_turn())
      dataset = load_set(
        config.dataset,
        config.model.image_size,
        data_dir=config.data_dir or None,
        seed=config.split_seed,
        progress=turn,
        **{key: config[key] for key in KEYS},
      )
  return dataset


def placement(nbytes: int, share: float, mesh: Mesh) -> str:
  """Where so many bytes of images are kept: device, host or disk.

  It is the first of them of whose memory they take at most `share`, and the
  same on all hosts, which may differ in memory.
  """
  devices = mesh.local_devices
  stats = devices[0].memory_stats() or {}
  # CPU devices report none and share the host's.
  device = stats.get("bytes_limit") or cache.memory() / len(devices)
  if nbytes <= share * device:
    own = 0
  else:
    own = 1 if nbytes <= share * cache.memory() else 2
  return ("device", "host", "disk")[max(hosts.all_gather(own))]


def describe(dataset, source):
  """Lines on what a set holds, what is broken in it, and where it is kept."""
  marks = {part: getattr(dataset, f"{part}_fingerprints") for part in PARTS}
  counts = [
    f"{len(marks[part]):,} {word}"
    for part, word in PARTS.items()
    if len(marks[part])
  ]
  size = dataset.train_images.shape[1]
  place = {
    "device": "kept on the device",
    "host": "kept in memory and streamed",
    "disk": "streamed from disk",
  }[source.placement]
  yield (
    f"{dataset.name}: {', '.join(counts)} images of {size} x {size} in"
    f" {len(dataset.classes)} classes; the training images take"
    f" {dataset.train_images.nbytes / 1e6:,.1f} MB, {place}"
  )
  for part in ("val", "test"):
    if seen := np.isin(marks[part], marks["train"]).sum():
      yield (
        f"warning: {seen:,} of the {len(marks[part]):,} {PARTS[part]} images"
        " are among the training images too"
      )
  if broken := dataset.broken:
    first = ", ".join(f"{name} ({why})" for name, why in [*broken.items()][:10])
    more = ", ..." if len(broken) > 10 else ""
    yield f"skipped {len(broken)} broken images: {first}{more}"
