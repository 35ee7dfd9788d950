"""Where the builders' material comes from, and whether it is the official one.

It is looked for in TFDS's manual directory, `DATA_DIR/downloads/manual`, as the
extracted folder or as the archive, and else downloaded where it is published.
What is wrong with it is a `UserError` of one sentence.
"""

import dataclasses
import hashlib
import urllib.error
import urllib.request
from collections.abc import Sequence

import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from vit_ssl_jax.cli import UserError

BLOCK = 1 << 20
TIMEOUT = 10  # seconds for a source to answer


@dataclasses.dataclass(frozen=True)
class Archive:
  """One official file, and what was published of it."""

  name: str
  # As published: "md5:..." or "sha256:...", in hexadecimal.
  digest: str
  # What it extracts to; "" for a file that is used as it is.
  folder: str = ""
  # Bytes; 0 where nobody published them.
  size: int = 0
  # "" where no source answers any more.
  url: str = ""


def present(archive: Archive, manager: tfds.download.DownloadManager) -> bool:
  """Whether the manual directory holds the archive or its folder."""
  place = _manual_dir(manager)
  if archive.folder and (place / archive.folder).is_dir():
    return True
  return (place / archive.name).is_file()


def collect(
  name: str,
  archives: Sequence[Archive],
  manager: tfds.download.DownloadManager,
  instead: str = "",
) -> list[epath.Path]:
  """Finds, checks and extracts what a set is made of.

  Args:
    name: the set's, for the sentences.
    archives: what it is made of.
    manager: TFDS's.
    instead: of another release that would do, for the sentence.

  Returns:
    For each archive its folder, or the file where it has none.

  Raises:
    UserError: something is missing and cannot be had, is not the official file,
      or cannot be extracted.
  """
  gone = [a for a in archives if not (a.url or present(a, manager))]
  if gone:
    why = "no official source answers any more"
    raise _wanted(name, gone, manager, why, instead)
  return [_get(name, archive, manager) for archive in archives]


def _get(name, archive, manager):
  place = _manual_dir(manager)
  if archive.folder and (place / archive.folder).is_dir():
    return place / archive.folder
  file = place / archive.name
  if file.is_file():
    _verify(archive, file, file)
  else:
    file = _download(name, archive, manager)
  return _extract(archive, file, manager) if archive.folder else file


def _manual_dir(manager) -> epath.Path:
  try:
    return manager.manual_dir
  except AssertionError:  # there is none, or nothing in it
    return manager.download_dir / "manual"


def _wanted(name, archives, manager, why, instead="") -> UserError:
  items = []
  for archive in archives:
    notes = [_megabytes(archive.size)] if archive.size else []
    if archive.folder:
      notes.append(f"or the extracted folder {archive.folder}")
    items.append(archive.name + (f" ({', '.join(notes)})" if notes else ""))
  return UserError(
    f'The data set "{name}" cannot be prepared: put {", ".join(items)}'
    f"{instead} into {_manual_dir(manager)} ({why})."
  )


def _megabytes(size: int) -> str:
  return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def _verify(archive: Archive, file: epath.Path, shown) -> None:
  """Raises UserError unless `file`, called `shown`, is the official one."""
  size = file.stat().length
  if archive.size and size != archive.size:
    raise UserError(
      f"{shown} is not the official {archive.name}: it has {size:,} bytes "
      f"instead of {archive.size:,}."
    )
  kind, wanted = archive.digest.split(":")
  logging.info("Checking %s, %s.", shown, _megabytes(size))
  digest = hashlib.new(kind, usedforsecurity=False)
  with file.open("rb") as stream:
    while block := stream.read(BLOCK):
      digest.update(block)
  if digest.hexdigest() != wanted:
    raise UserError(
      f"{shown} is not the official {archive.name}: its {kind.upper()} is "
      f"{digest.hexdigest()} instead of {wanted}."
    )


def _download(name, archive, manager) -> epath.Path:
  try:
    _probe(archive.url)
    file = epath.Path(manager.download(archive.url))
  except (OSError, tfds.download.DownloadError) as error:
    why = " ".join(str(getattr(error, "reason", error)).split())[:200]
    why = f"{archive.url} cannot be had: {why.rstrip('.')}"
    raise _wanted(name, [archive], manager, why) from error
  try:
    _verify(archive, file, archive.url)
  except UserError:
    # TFDS would take it, or its .INFO, for the archive's the next time.
    for path in file.parent.glob(f"{file.name}*"):
      path.unlink()
    raise
  return file


def _probe(url: str) -> None:
  """Raises OSError unless somebody has the file: TFDS retries for minutes."""
  request = urllib.request.Request(url, method="HEAD")
  try:
    urllib.request.urlopen(request, timeout=TIMEOUT).close()
  except urllib.error.HTTPError as error:
    error.close()
    # Other answers may be to the method alone.
    if error.code in (404, 410) or error.code >= 500:
      raise


def _extract(archive, file, manager) -> epath.Path:
  # TFDS extracts beside the place and moves: what is there is whole.
  methods = tfds.download.ExtractMethod
  method = methods.ZIP if archive.name.endswith(".zip") else methods.TAR_GZ
  resource = tfds.download.Resource(path=file, extract_method=method)
  try:
    root = epath.Path(manager.extract(resource))
  except Exception as error:  # what the damage makes of it
    why = " ".join(str(error.__cause__ or error).split()).rstrip(".")
    raise UserError(f"{file} cannot be extracted: {why}.") from error
  # Some archives have their folder in them, some are what is in it.
  return root / archive.folder if (root / archive.folder).is_dir() else root
