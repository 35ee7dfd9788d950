"""Where the builders' archives come from, and whether they are official.

An archive is looked for in TFDS's manual directory, DATA_DIR/downloads/manual,
as the extracted folder or as the file, and is else downloaded. Addresses, sizes
and checksums stand in TFDS's checksums.tsv: SHA-256, but MD5 and no size where
nothing else was published and nothing can be downloaded.
"""

import hashlib
import zipfile

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download.download_manager import (
  NonMatchingChecksumError,
)

from vit_ssl_jax import cli
from vit_ssl_jax.data.tfds_sets import check_answers
from vit_ssl_jax.errors import UserError, line


def collect(
  builder: tfds.core.DatasetBuilder,
  manager: tfds.download.DownloadManager,
  archives: dict[str, str],
  *,
  gone: bool = False,
  instead: str = "",
) -> list[epath.Path]:
  """Finds, checks and extracts what a set is made of.

  Args:
    archives: files of checksums.tsv, and the folder that each extracts to; ""
      for one that is used as it is.
    gone: whether no official source answers any more.
    instead: of another release that would do, for the sentence.

  Returns:
    For each archive its folder, or the file where it has none.

  Raises:
    UserError: something is missing and cannot be had, is not the official file,
      or cannot be extracted.
  """
  known = {x.filename: (url, x) for url, x in builder.url_infos.items()}
  place = manual_dir(manager)
  missing = [x for x in archives.items() if not present(place, *x)]
  try:
    if missing and gone:
      raise OSError("no official source answers any more")
    files = {
      name: download(manager, known[name][0], name) for name, _ in missing
    }
  except OSError as error:
    items = [describe(known[name][1], folder) for name, folder in missing]
    raise UserError(
      f'The data set "{builder.name}" cannot be prepared: put'
      f" {', '.join(items)}{instead} into {place} ({line(error)})."
    ) from error
  found = []
  for name, folder in archives.items():
    if folder and (place / folder).is_dir():
      found.append(place / folder)
      continue
    file = files.get(name)
    if not file:
      file = place / name
      check_official(file, known[name][1])
    found.append(extract(manager, file, folder) if folder else file)
  return found


def manual_dir(manager: tfds.download.DownloadManager) -> epath.Path:
  try:
    return manager.manual_dir
  except AssertionError:  # there is none, or nothing in it
    return manager.download_dir / "manual"


def present(place: epath.Path, name: str, folder: str) -> bool:
  """Whether an archive lies there, or the folder that it extracts to."""
  if folder and (place / folder).is_dir():
    return True
  return (place / name).is_file()


def describe(info, folder: str) -> str:
  notes = [f"{info.size / 1e6:,.0f} MB"] if info.size >= 1e6 else []
  notes += [f"or the extracted folder {folder}"] if folder else []
  return info.filename + (f" ({', '.join(notes)})" if notes else "")


def check_official(file: epath.Path, info) -> None:
  """Raises UserError unless a file has the official size and checksum."""
  size = file.stat().length
  if info.size and size != info.size:
    raise UserError(
      f"{file} is not the official {info.filename}: it has {size:,} bytes"
      f" instead of {info.size:,}."
    )
  kind = "md5" if len(info.checksum) == 32 else "sha256"
  cli.log(f"checking {file}, {size / 1e6:,.0f} MB")
  with file.open("rb") as stream:
    digest = hashlib.file_digest(stream, kind).hexdigest()
  if digest != info.checksum:
    raise UserError(
      f"{file} is not the official {info.filename}: its {kind.upper()} is"
      f" {digest} instead of {info.checksum}."
    )


def download(manager, url: str, name: str) -> epath.Path:
  """A file, downloaded and checked by TFDS."""
  try:
    check_answers(url)
    return epath.Path(manager.download(url))
  except (OSError, tfds.download.DownloadError) as error:
    why = getattr(error, "reason", error)
    raise OSError(f"{url} cannot be had: {why}") from error
  except NonMatchingChecksumError as error:
    raise UserError(
      f"{url} is not the official {name}: it has another size or SHA-256."
    ) from error


def extract(manager, file: epath.Path, folder: str) -> epath.Path:
  """The folder of an archive, extracted by TFDS."""
  methods = tfds.download.ExtractMethod
  method = methods.ZIP if zipfile.is_zipfile(file) else methods.TAR_GZ
  resource = tfds.download.Resource(path=file, extract_method=method)
  try:
    root = epath.Path(manager.extract(resource))
  except Exception as error:  # what the damage makes of it
    why = line(error.__cause__ or error)
    raise UserError(f"{file} cannot be extracted: {why}.") from error
  # Some archives have their folder in them, some are what is in it.
  return root / folder if (root / folder).is_dir() else root
