"""Custom datasets in a folder of images, one subfolder for each class."""

import dataclasses
import os
import re

import numpy as np

from vit_ssl_jax.data import cache, splits
from vit_ssl_jax.errors import UserError, reading

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
# Names of the parts' folders, in any case.
PARTS = {
  "train": ("train", "training"),
  "test": ("test", "testing"),
  "val": ("val", "valid", "validation"),
}
# Left by macOS and network drives; ignored, as are names that begin with a dot.
IGNORED = ("__MACOSX", "@eaDir")
# Random stream that holds out test images.
TEST = 3


def read(path, size, options):
  """Reads images in `CLASS/**`, or in `train/CLASS/**`, `test/` and `val/`.

  Without a test folder, the validation folder is the test part. Images are
  sorted by path; hidden files and files without an image's suffix are ignored.
  """
  folders, files, classes = layout(path)
  parts = {
    part: decoded(path, folder, files[part], classes, size, options)
    for part, folder in folders.items()
  }
  broken = [
    f"{name} ({why})"
    for part in parts.values()
    for name, why in part.broken.items()
  ]
  if broken and not options.skip_broken_images:
    raise UserError(
      f"{path} has broken images ({len(broken)}): {enumerated(broken)};"
      " skip_broken_images=True skips them"
    )
  if "all" in parts:
    parts = hold_out(parts["all"], options.test_fraction, options.seed)
  check_left(path, parts, classes)
  return parts, classes


def layout(root):
  """Part -> its folder's name; part -> its images by `walk`; class names."""
  if os.path.isfile(root):
    raise UserError(f"{root} must be a folder of images, and is a file")
  if not os.path.isdir(root):
    raise UserError(f"there is no folder {root!r}")
  with reading():
    folders = find_folders(root)
    files = {
      part: sorted(walk(os.path.join(root, folder)))
      for part, folder in folders.items()
    }
    return folders, files, find_classes(root, folders, files)


def find_folders(root):
  """Part -> its folder below root; "all" -> "" if there are only classes."""
  parts, folders = {}, subfolders(root)
  for part, names in PARTS.items():
    fit = [folder for folder in folders if folder.lower() in names]
    if len(fit) > 1:
      raise UserError(f"{root} must have only one of {enumerated(fit)}")
    if fit:
      parts[part] = fit[0]
  # Classes may well be called "valid" and "invalid", or "train" and "car".
  train = parts.get("train")
  with_classes = train and subfolders(os.path.join(root, train))
  if not with_classes and (not parts or len(parts) < len(folders)):
    return {"all": ""}
  if "train" not in parts:
    raise UserError(f"{root} has {enumerated(folders)} but no train folder")
  if "test" not in parts and "val" not in parts:
    raise UserError(
      f"{root} has {train} but no test or val folder: add one, or leave all out"
      " for test_fraction"
    )
  if "test" not in parts:
    parts["test"] = parts.pop("val")
  return parts


def subfolders(root):
  with os.scandir(root) as entries:
    return sorted(e.name for e in entries if not hidden(e) and e.is_dir())


def hidden(entry):
  return entry.name.startswith(".") or entry.name in IGNORED


def walk(folder, prefix="", above=frozenset()):
  """Yields (relative path, bytes, time in ns) of all images below a folder."""
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


def names(folder):
  """Sorted relative paths of all images below a folder."""
  with reading():
    if paths := sorted(name for name, *_ in walk(folder)):
      return paths
  raise UserError(f"{folder} has no images: no JPEG, PNG, WebP, BMP or GIF")


def find_classes(root, folders, files):
  """Sorted class names; drops images outside class folders from `files`."""
  classes = {}
  for part, listed in files.items():
    inside = [file for file in listed if "/" in file[0]]
    if not inside:
      has = "images outside class folders" if listed else "no images"
      raise UserError(
        f"{os.path.join(root, folders[part])} has {has}: it must have a folder"
        " for each class"
      )
    files[part] = inside
    classes[part] = {file[0].partition("/")[0] for file in inside}
  first = next(iter(folders))  # train, or all
  place = os.path.join(root, folders[first])
  if empty := [x for x in subfolders(place) if x not in classes[first]]:
    raise UserError(
      f"{place} has no images in {enumerated(empty)}; each class must have some"
    )
  for part, names in classes.items():
    if new := sorted(names - classes[first]):
      raise UserError(
        f"{root} has classes in {folders[part]} that {folders[first]} lacks:"
        f" {enumerated(new)}"
      )
  if len(classes[first]) < 2:
    raise UserError(f"{place} has only one class, {classes[first].pop()!r}")
  return tuple(sorted(classes[first]))


def decoded(root, folder, files, classes, size, options):
  """Images of one part, from the cache or decoded."""
  place = os.path.join(root, folder)
  stem = f"{os.path.basename(os.path.realpath(root))}-{folder}"
  plain = re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII)[:60].strip("-")
  index = {name: label for label, name in enumerate(classes)}

  def find():
    paths = (os.path.join(place, file) for file, *_ in files)
    labels = [index[file.partition("/")[0]] for file, *_ in files]
    return len(files), paths, labels

  key = (os.path.realpath(place), classes, files)
  part = cache.decoded(f"folder-{plain}", key, size, options, find)
  broken = {
    os.path.join(folder, files[row][0]): why for row, why in part.broken.items()
  }
  return dataclasses.replace(part, broken=broken)


def hold_out(part, fraction, seed):
  """Splits a part into "train" and "test" by labels of -1.

  It depends on the files' paths alone, not on how they are decoded.
  """
  labels, rows = part.labels, np.flatnonzero(part.labels >= 0)
  test = np.full_like(labels, -1)
  if len(rows):
    mask = splits.held_out(labels[rows], rows, fraction, seed, TEST)
    test[rows[mask]] = labels[rows[mask]]
  train = np.where(test < 0, labels, -1)
  return {
    name: dataclasses.replace(part, labels=x)
    for name, x in (("train", train), ("test", test))
  }


def check_left(root, parts, classes) -> None:
  """Raises UserError if a class or a part has no images left."""
  labels = set(parts["train"].labels.tolist())
  if gone := [name for i, name in enumerate(classes) if i not in labels]:
    raise UserError(
      f"{root}: all training images of {enumerated(gone)} are broken"
    )
  for name, part in parts.items():
    if (part.labels < 0).all():
      raise UserError(
        f"{root} has no images for the {name} part: they are broken, or there"
        " is only one of each class"
      )


def enumerated(names):
  more = f" and {len(names) - 10} more" if len(names) > 10 else ""
  return ", ".join(names[:10]) + more
