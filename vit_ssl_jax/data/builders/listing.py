"""What is in the builders' material, listed and checked.

What is missing or wrong is a `UserError` of one sentence.
"""

from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from vit_ssl_jax.cli import UserError

IMAGE_STARTS = (b"\xff\xd8", b"\x89PNG")

# (path below some folder, label) of each image.
Listed = Sequence[tuple[str, int]]


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
    if (path.name.endswith(suffix) if suffix else path.is_dir())
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


def check_classes(where: epath.Path, found: int, published: int) -> None:
  """Raises UserError unless there are as many classes as were published."""
  if found != published:
    raise UserError(
      f"{where} names {found:,} classes, but {published:,} were published."
    )


def check_count(
  where: epath.Path, split: str, found: int, published: int
) -> None:
  """Raises UserError unless a split has as many images as were published."""
  if found != published:
    raise UserError(
      f"{where} has {found:,} images of the split {split}, but {published:,} "
      "were published."
    )


def read_image(path: epath.Path) -> bytes:
  """A JPEG or PNG file as it is; UserError if it is neither, or missing."""
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}.") from error
  if not data.startswith(IMAGE_STARTS):
    raise UserError(f"{path} is neither a JPEG nor a PNG image.")
  return data


def examples(root: epath.Path, listed: Listed) -> Iterator[tuple[str, dict]]:
  """TFDS's examples, keyed by the path below `root`."""
  for path, label in listed:
    yield path, {"image": read_image(root / path), "label": label}
