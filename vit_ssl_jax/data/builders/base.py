"""Common code of the builders: official archives and labelled image files.

An archive is looked for in DATA_DIR/downloads/manual, as the extracted folder
or as the file, and downloaded otherwise.
"""

import hashlib
import zipfile
from typing import ClassVar

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download.download_manager import (
  NonMatchingChecksumError,
)

from vit_ssl_jax import cli
from vit_ssl_jax.data.tfds_sets import check_answers
from vit_ssl_jax.errors import UserError, line, reading

IMAGE_STARTS = (b"\xff\xd8", b"\x89PNG")


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A dataset of labelled image files, stored unchanged.

  `find(manager)` gives the class names and, for each split, a folder and a list
  of (path below it, label).
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
  HOMEPAGE = ""
  SHAPE: tuple[int | None, int | None, int] = (None, None, 3)
  CLASSES = 0
  PUBLISHED: ClassVar[dict[str, int]]  # images of each split

  def read(self, path):
    """The bytes of one image, as they are stored."""
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
      counts = {f"images of {split}": (len(images), self.PUBLISHED[split])}
      counts["class names"] = len(set(names)), self.CLASSES
      for noun, (count, published) in counts.items():
        if count != published:
          raise UserError(
            f"{root} has {count:,} {noun}, but {published:,} were published"
          )
    self.info.features["label"].names = list(names)
    return {
      split: self._generate_examples(root, images)
      for split, (root, images) in splits.items()
    }

  def _generate_examples(self, root, images):
    for path, label in images:
      yield path, {"image": self.read(root / path), "label": label}


def collect(builder, manager, archives, *, gone=False, instead=""):
  """Finds, checks and extracts archives, {file name: folder or ""}.

  Returns:
    For each archive its folder, or the file if it has none.
  """
  infos = {x.filename: (url, x) for url, x in builder.url_infos.items()}
  place = manager.download_dir / "manual"
  missing = [name for name in archives if not present(place, name, archives)]
  try:
    if missing and gone:
      raise OSError("no official source answers any more")
    downloads = {name: download(manager, *infos[name]) for name in missing}
  except OSError as error:
    files = [described(infos[name][1], archives[name]) for name in missing]
    raise UserError(
      f"dataset {builder.name!r} cannot be prepared: put {', '.join(files)}"
      f"{instead} into {place} ({line(error)})"
    ) from error
  paths = []
  for name, folder in archives.items():
    if folder and (place / folder).is_dir():
      paths.append(place / folder)
      continue
    if not (file := downloads.get(name)):
      file = place / name
      check_official(file, infos[name][1])
    paths.append(extract(manager, file, folder) if folder else file)
  return paths


def present(place, name, archives):
  """True if the archive or its extracted folder is there."""
  folder = archives[name]
  return bool(folder and (place / folder).is_dir()) or (place / name).is_file()


def described(info, folder):
  notes = [f"{info.size / 1e6:,.0f} MB"] if info.size >= 1e6 else []
  notes += [f"or the extracted folder {folder}"] if folder else []
  return info.filename + (f" ({', '.join(notes)})" if notes else "")


def check_official(file, info):
  """Refuses a file without the official size and checksum."""
  size = file.stat().length
  kind = "md5" if len(info.checksum) == 32 else "sha256"
  if info.size and size != info.size:
    fault = f"it has {size:,} bytes instead of {info.size:,}"
  else:
    cli.log(f"checking {file}, {size / 1e6:,.0f} MB")
    with file.open("rb") as stream:
      digest = hashlib.file_digest(stream, kind).hexdigest()
    if digest == info.checksum:
      return
    fault = f"its {kind.upper()} is {digest} instead of {info.checksum}"
  raise UserError(f"{file} is not the official {info.filename}: {fault}")


def download(manager, url, info):
  """A file, downloaded and checked by TFDS."""
  try:
    check_answers(url)
    return epath.Path(manager.download(url))
  except (OSError, tfds.download.DownloadError) as error:
    why = getattr(error, "reason", error)
    raise OSError(f"could not download {url}: {why}") from error
  except NonMatchingChecksumError as error:
    raise UserError(
      f"{url} is not the official {info.filename}: its size or SHA-256 differs"
    ) from error


def extract(manager, file, folder):
  """The folder of an archive, extracted by TFDS."""
  methods = tfds.download.ExtractMethod
  method = methods.ZIP if zipfile.is_zipfile(file) else methods.TAR_GZ
  resource = tfds.download.Resource(path=file, extract_method=method)
  try:
    root = epath.Path(manager.extract(resource))
  except Exception as error:  # of many types
    why = line(error.__cause__ or error)
    raise UserError(f"{file} cannot be extracted: {why}") from error
  # Some archives hold the folder, some its content.
  return root / folder if (root / folder).is_dir() else root


def lines(path):
  """The non-empty lines of a text file."""
  with reading(path):
    text = path.read_bytes().decode(errors="replace")
  return [line for line in text.splitlines() if line.strip()]


def class_folders(root, folder, classes, suffix):
  """(path below root, label) of the images in root/folder/CLASS/*suffix.

  A class may be a deeper folder, such as "n01443537/images".
  """
  place = root / folder
  tops = {name.split("/")[0] for name in classes}
  with reading(place):
    names = {x.name for x in place.iterdir() if x.name[0] != "." and x.is_dir()}
    refuse(place, "lacks the class folder", tops - names)
    refuse(place, "has a folder of no class:", names - tops)
    return [
      (f"{folder}/{name}/{image}", label)
      for label, name in enumerate(classes)
      for image in sorted(x.name for x in (place / name).iterdir())
      if suffix in image and image[0] != "."
    ]


def refuse(place, fault, names):
  """Raises an error that names the first of some names, if there are any."""
  if names := sorted(names):
    more = f" and {len(names) - 1:,} more" if names[1:] else ""
    raise UserError(f"{place} {fault} {names[0]}{more}")


def read_image(path):
  """The bytes of a JPEG or PNG file."""
  with reading(path):
    data = path.read_bytes()
  if not data.startswith(IMAGE_STARTS):
    raise UserError(f"{path} is neither a JPEG nor a PNG image")
  return data
