"""What all builders share: how images are listed, checked and stored.

What is missing or wrong is a `UserError` of one sentence.
"""

import os
from collections.abc import Iterable, Sequence
from typing import ClassVar

import tensorflow_datasets as tfds
from etils import epath

from vit_ssl_jax.errors import UserError

IMAGE_STARTS = (b"\xff\xd8", b"\x89PNG")

# (path below some folder, label) of each image.
Listed = Sequence[tuple[str, int]]


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set of labelled image files, stored as they are.

  All images are listed, and counted against what was published, before anything
  is written. Grey images come out as RGB.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
  HOMEPAGE = ""
  SHAPE: tuple[int | None, int | None, int] = (None, None, 3)
  CLASSES = 0
  PUBLISHED: ClassVar[dict[str, int]]  # images of each split

  def find(
    self, manager: tfds.download.DownloadManager
  ) -> tuple[Sequence[str], dict[str, tuple[epath.Path, Listed]]]:
    """The classes' names; and each split's folder and images below it."""
    raise NotImplementedError

  def read(self, path: epath.Path) -> bytes:
    """One image as it is to be stored."""
    return read_image(path)

  def _info(self):
    return self.dataset_info_from_configs(
      description=self.__doc__,
      homepage=self.HOMEPAGE,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=self.SHAPE),
          "label": tfds.features.ClassLabel(num_classes=self.CLASSES),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    names, splits = self.find(dl_manager)
    for split, (root, images) in splits.items():
      check_listed(root, images)
      check_count(
        root, len(images), f"images of {split}", self.PUBLISHED[split]
      )
      check_count(root, len({*names}), "names of classes", self.CLASSES)
    self.info.features["label"].names = list(names)
    return {
      split: self._generate_examples(root, images)
      for split, (root, images) in splits.items()
    }

  def _generate_examples(self, root, images):
    for path, label in images:
      yield path, {"image": self.read(root / path), "label": label}


def check_count(root: epath.Path, found: int, what: str, published: int):
  """Raises UserError unless there is as much as was published."""
  if found != published:
    raise UserError(
      f"{root} has {found:,} {what}, but {published:,} were published."
    )


def check_listed(root: epath.Path, images: Listed) -> None:
  """Raises UserError unless all images are there."""
  folders = {os.path.dirname(path) for path, _ in images}
  there = {
    os.path.join(folder, name)
    for folder in folders
    for name in names(root / folder, ".")
  }
  lacking = {path for path, _ in images} - there
  refuse(root, "lacks the annotated image", lacking)


def names(folder: epath.Path, suffix: str = "") -> list[str]:
  """Sorted names of a folder's files with that suffix, or else of its folders.

  Raises:
    UserError: it cannot be read.
  """
  try:
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
  except OSError as error:
    raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
  return sorted(
    path.name
    for path in found
    if (suffix in path.name if suffix else path.is_dir())
  )


def lines(path: epath.Path) -> list[str]:
  """A text file's lines but the empty ones; UserError if it is not there."""
  try:
    text = path.read_bytes().decode(errors="replace")
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  return [line for line in text.splitlines() if line.strip()]


def class_folders(
  root: epath.Path, folder: str, classes: Sequence[str], suffix: str
) -> Listed:
  """The images of a folder with a folder per class, labelled by class.

  Args:
    root: what the listed paths are below.
    folder: below `root`; holds the folders.
    classes: the folders' names, in the order of the labels; a name may go on
      with the folders below it, as in "n01443537/images".
    suffix: the images', such as ".png".

  Raises:
    UserError: a class has no folder, or a folder no class.
  """
  found = {*names(root / folder)}
  wanted = {name.split("/")[0] for name in classes}
  refuse(root / folder, "lacks the class folder", wanted - found)
  refuse(root / folder, "has a folder of no class:", found - wanted)
  return [
    (f"{folder}/{name}/{image}", label)
    for label, name in enumerate(classes)
    for image in names(root / folder / name, suffix)
  ]


def refuse(where: epath.Path, fault: str, found: Iterable[str]) -> None:
  """Raises UserError "WHERE FAULT NAME (and N more)." if anything was found."""
  found = sorted(found)
  if found:
    more = f" and {len(found) - 1:,} more" if found[1:] else ""
    raise UserError(f"{where} {fault} {found[0]}{more}.")


def read_image(path: epath.Path) -> bytes:
  """A JPEG or PNG file as it is; UserError if it is neither, or missing."""
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  if not data.startswith(IMAGE_STARTS):
    raise UserError(f"{path} is neither a JPEG nor a PNG image.")
  return data
