"""A user's own folder of images, one folder for each class. No TensorFlow."""

import dataclasses
import os
import re
from collections.abc import Iterator

import numpy as np

from vit_ssl_jax.data import cache, rows
from vit_ssl_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# What the folder of a part may be called, in any case.
PARTS = {
  "train": ("train", "training"),
  "test": ("test", "testing"),
  "val": ("val", "valid", "validation"),
}
# What macOS and network drives leave; so are names that begin with a dot.
NOT_OURS = ("__MACOSX", "@eaDir")
# The stream of random numbers that holds out test images.
TEST = 3
# An image's path below its part, "CLASS/.../NAME"; its bytes and time in ns.
File = tuple[str, int, int]


def read(
  path: str,
  size: int,
  *,
  resize: str,
  test_fraction: float,
  skip_broken_images: bool,
  seed: int,
  progress: bool,
) -> tuple[dict[str, cache.Decoded], tuple[str, ...]]:
  """Reads images in `CLASS/**`, or in `train/CLASS/**`, `test/` and `val/`.

  Without a test folder, the validation folder is the test part. Images come in
  the order of their paths, the same on every machine; hidden files and those
  that are no images by their names are ignored. What is decoded is cached.

  Args are those of `load.load`; `seed` fixes which images are held out.

  Returns:
    parts: "train", "test" and maybe "val" -> images and labels, of which -1
      is a row that does not belong to this part; `broken` by the file's name.
    classes: their names, sorted.

  Raises:
    UserError: the folder is not laid out so, or has images that are broken.
  """
  places, listed, classes = layout(path)
  parts = {
    part: decoded(path, place, listed[part], classes, size, resize, progress)
    for part, place in places.items()
  }
  if not skip_broken_images:
    check_broken(path, parts)
  if "all" in parts:
    parts = hold_out(parts["all"], test_fraction, seed)
  check_left(path, parts, classes)
  return parts, classes


def layout(root: str):
  """Part -> its folder's name; part -> its images; the names of the classes."""
  if os.path.isfile(root):
    raise UserError(f"{root} is a file; it must be a folder of images.")
  if not os.path.isdir(root):
    raise UserError(f'There is no folder "{root}".')
  try:
    places = find_places(root)
    listed = {
      part: sorted(walk(os.path.join(root, place)))
      for part, place in places.items()
    }
    return places, listed, find_classes(root, places, listed)
  except OSError as error:
    file, why = error.filename, error.strerror
    raise UserError(f"{file} cannot be read: {why}.") from error


def find_places(root: str) -> dict[str, str]:
  """Part -> its folder below root; "all" -> "" if there are only classes."""
  found, folders = {}, subfolders(root)
  for part, names in PARTS.items():
    fit = [folder for folder in folders if folder.lower() in names]
    if len(fit) > 1:
      raise UserError(f"{root} has {some(fit)}; it must have one of them.")
    if fit:
      found[part] = fit[0]
  # Classes may well be called "valid" and "invalid", or "train" and "car".
  train = found.get("train")
  with_classes = train and subfolders(os.path.join(root, train))
  if not with_classes and (not found or len(found) < len(folders)):
    return {"all": ""}
  if "train" not in found:
    raise UserError(f"{root} has {some(folders)} but no train folder.")
  if "test" not in found and "val" not in found:
    raise UserError(
      f"{root} has {found['train']} but no test or val folder: add one, or"
      " leave all out, and test_fraction holds out a share of every class."
    )
  if "test" not in found:
    found["test"] = found.pop("val")
  return found


def subfolders(root: str) -> list[str]:
  with os.scandir(root) as entries:
    return sorted(e.name for e in entries if not hidden(e) and e.is_dir())


def hidden(entry: os.DirEntry) -> bool:
  return entry.name.startswith(".") or entry.name in NOT_OURS


def walk(folder: str, prefix="", above=frozenset()) -> Iterator[File]:
  """All images below a folder; symbolic links are followed."""
  stat = os.stat(folder)
  here = (stat.st_dev, stat.st_ino)
  if here in above:  # a symbolic link that leads in a circle
    return
  with os.scandir(folder) as entries:
    for entry in entries:
      if hidden(entry):
        continue
      path = prefix + entry.name
      if entry.is_dir():
        yield from walk(entry.path, f"{path}/", above | {here})
      elif entry.name.lower().endswith(SUFFIXES):
        stat = entry.stat()
        yield path, stat.st_size, stat.st_mtime_ns


def names(folder: str) -> list[str]:
  """The paths of all images below a folder, relative to it, sorted.

  Raises:
    UserError: there are none, or something cannot be read.
  """
  try:
    found = sorted(name for name, *_ in walk(folder))
  except OSError as error:
    raise UserError(
      f"{error.filename} cannot be read: {error.strerror}"
    ) from error
  if not found:
    raise UserError(f"{folder} has no images: no JPEG, PNG, WebP, BMP or GIF")
  return found


def find_classes(
  root: str, places: dict[str, str], listed: dict[str, list[File]]
) -> tuple[str, ...]:
  """The names of the classes; and drops images outside of class folders."""
  found = {}
  for part, files in listed.items():
    none = "no images (JPEG, PNG, WebP, BMP or GIF)"
    has = "images, but not in folders" if files else none
    files[:] = [file for file in files if "/" in file[0]]
    found[part] = {file[0].partition("/")[0] for file in files}
    if not files:
      raise UserError(
        f"{os.path.join(root, places[part])} has {has}; there must be a folder"
        " of images for each class."
      )
  first = next(iter(places))  # train, or all
  where = os.path.join(root, places[first])
  if empty := [name for name in subfolders(where) if name not in found[first]]:
    raise UserError(
      f"{where} has no images in {some(empty)}; each class must have some."
    )
  for part in found:
    if new := sorted(found[part] - found[first]):
      raise UserError(
        f"{root} has classes in {places[part]} that {places[first]} lacks:"
        f" {some(new)}."
      )
  classes = tuple(sorted(found[first]))
  if len(classes) < 2:
    raise UserError(
      f"{where} has only one class, {classes[0]}; there must be at least two."
    )
  return classes


def decoded(root, place, files, classes, size, resize, progress):
  """One part's images, from the cache or decoded."""
  folder = os.path.join(root, place)
  name = os.path.basename(os.path.realpath(root))
  plain = re.sub(r"[^\w.-]+", "_", f"{name}-{place}", flags=re.ASCII)[:60]
  index = {name: label for label, name in enumerate(classes)}

  def find():
    return cache.Stored(
      count=len(files),
      files=(os.path.join(folder, file) for file, *_ in files),
      labels=[index[file.partition("/")[0]] for file, *_ in files],
    )

  key = (os.path.realpath(folder), classes, files)
  name = f"folder-{plain.strip('-')}"
  found = cache.decoded(name, key, size, resize, find, progress)
  broken = {
    os.path.join(place, files[row][0]): why for row, why in found.broken.items()
  }
  return dataclasses.replace(found, broken=broken)


def hold_out(found: cache.Decoded, fraction: float, seed: int):
  """Part -> the same images, with the labels of its own rows.

  Which are held out depends on the files' paths, and so on nothing of how they
  are decoded: what one run has trained on, no later one tests on.
  """
  labels, whole = found.labels, np.flatnonzero(found.labels >= 0)
  test = np.full_like(labels, -1)
  if len(whole):
    # The rows are sorted by path.
    out = rows.held_out(labels[whole], whole, fraction, seed, TEST)
    test[whole[out]] = labels[whole[out]]
  train = np.where(test < 0, labels, -1)
  kept = {"train": train, "test": test}
  return {k: dataclasses.replace(found, labels=v) for k, v in kept.items()}


def check_broken(root, parts) -> None:
  names = [
    f"{name} ({why})"
    for part in parts.values()
    for name, why in part.broken.items()
  ]
  if names:
    raise UserError(
      f"{root} has broken images ({len(names)}): {some(names)};"
      " skip_broken_images=True skips them."
    )


def check_left(root, parts, classes) -> None:
  """Raises UserError if nothing is left of a class or of a part."""
  kept = set(parts["train"].labels.tolist())
  if gone := [name for i, name in enumerate(classes) if i not in kept]:
    raise UserError(f"{root}: all training images of {some(gone)} are broken.")
  for part, found in parts.items():
    if (found.labels < 0).all():
      why = "they are broken, or there is only one of each class"
      raise UserError(f"{root} has no images for the {part} part: {why}.")


def some(names: list[str]) -> str:
  more = f" and {len(names) - 10} more" if len(names) > 10 else ""
  return ", ".join(names[:10]) + more
