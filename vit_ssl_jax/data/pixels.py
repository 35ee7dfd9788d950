"""Stored images to the one form that the rest works on: square RGB bytes."""

import concurrent.futures
import contextlib
import hashlib
import io
import itertools
import os
import sys
import warnings
from collections.abc import Iterable

import numpy as np
import tqdm

# WebP registers itself, as Pillow's commonest formats do anyway; else its first
# image would make every thread import all of Pillow's plugins.
from PIL import (
  Image,
  ImageOps,
  UnidentifiedImageError,
  WebPImagePlugin,  # noqa: F401
)

from vit_ssl_jax.errors import UserError, line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
# To S×S: the shorter side to S and the middle cropped, or the aspect given up.
RESIZES = ("crop", "squash")
# A path, an encoded image, or pixels: (H, W) or (H, W, 3) uint8.
Stored = str | os.PathLike | bytes | np.ndarray

MOST_THREADS = 16  # more would wait for each other to hold Python's lock
MOST_PIXELS = 2**26  # of an image; what has more is a bomb
CHUNK = 8  # images that a thread takes at a time
BATCH = 64  # images that are read ahead, per thread


class BrokenImageError(ValueError):
  """An image cannot be decoded; the message says why, in a few words."""


def decode(file: Stored, size: int, resize: str) -> np.ndarray:
  """One stored image -> (S, S, 3) uint8, as a viewer shows it.

  The EXIF orientation is applied, transparency lies on white, 16 bits of grey
  become 8, and of an animation the first frame is taken. An image that is S×S
  already keeps its pixels; others are resized, bicubic with antialiasing, as
  `resize`, one of `RESIZES`, says.

  Raises:
    BrokenImageError: it is none of `FORMATS`, or damaged.
    UserError: the file cannot be read.
  """
  with quiet():
    return decode_stored(file, size, resize)[0]


def decode_all(
  out: np.ndarray,
  files: Iterable[Stored],
  resize: str,
  *,
  label: str = "",
  progress: bool = False,
) -> tuple[np.ndarray, dict[int, str]]:
  """Decodes N images into out, (N, S, S, 3) uint8, in threads.

  Args:
    out: where to; may be a np.memmap.
    files: N images as `decode` takes them, read only a little ahead.
    label: what the progress bar says.

  Returns:
    fingerprints: (N,) uint64, a hash of each image's size and RGB bytes as it
      is stored, whatever the size it is resized to.
    broken: the row -> why, of images that are broken; these rows are zeros.

  Raises:
    UserError: a file cannot be read.
    ValueError: there are more or fewer images than rows.
  """
  files, broken, start = iter(files), {}, 0
  fingerprints = np.zeros(len(out), np.uint64)

  def decode_chunk(rows):
    found = {}
    for row in rows:
      try:
        out[row], fingerprints[row] = decode_stored(
          batch[row - start], out.shape[1], resize
        )
      except BrokenImageError as error:
        out[row], found[row] = 0, str(error)
    return found

  threads = min(cores(), MOST_THREADS)
  with (
    concurrent.futures.ThreadPoolExecutor(threads) as pool,
    progress_bar(len(out), label, progress) as bar,
    quiet(),
  ):
    while batch := list(itertools.islice(files, BATCH * threads)):
      stop = start + len(batch)
      if stop > len(out):
        raise ValueError(f"more images than {len(out)} rows")
      rows = range(start, stop)
      chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
      for found in pool.map(decode_chunk, chunks):
        broken |= found
      bar.update(len(rows))
      start = stop
  if start != len(out):
    raise ValueError(f"{start} images for {len(out)} rows")
  return fingerprints, broken


def resized(images: np.ndarray, size: int, resize: str) -> np.ndarray:
  """(N, H, W, 3) uint8 -> (N, S, S, 3) uint8, as `decode` does it."""
  if images.shape[1:3] == (size, size):
    return images
  out = np.empty((len(images), size, size, 3), np.uint8)
  decode_all(out, images, resize)
  return out


def progress_bar(total: int, label: str, progress: bool) -> tqdm.tqdm:
  """A bar with the time left; in a log file a line now and then."""
  seconds = 0.5 if sys.stderr.isatty() else 15
  return tqdm.tqdm(
    total=total,
    desc=label,
    unit="image",
    leave=False,
    disable=not progress,
    mininterval=seconds,
    delay=seconds,
  )


def cores() -> int:
  """How many processor cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def quiet():
  """Hides Pillow's warnings: of odd EXIF, large images and the like.

  What hinders decoding is an error. This changes the filters of all threads,
  and so is not for those of a pool to enter.
  """
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", module=r"PIL\b")
    yield


def decode_stored(
  file: Stored, size: int, resize: str
) -> tuple[np.ndarray, int]:
  data = read(file)
  try:
    if isinstance(data, np.ndarray):
      image = Image.fromarray(data)
    else:
      image = upright(data)
    image = rgb(image)
    stored = np.asarray(image)
    if image.size == (size, size):
      return stored, fingerprint(stored)
    return np.asarray(square(image, size, resize)), fingerprint(stored)
  except (BrokenImageError, MemoryError):
    raise
  except Exception as error:  # Pillow raises whatever its parsers stumble over
    raise BrokenImageError(line(error)) from error


def read(file: Stored) -> bytes | np.ndarray:
  if isinstance(file, bytes | np.ndarray):
    return file
  try:
    with open(file, "rb") as opened:
      return opened.read()
  except OSError as error:
    raise UserError(f"{file} cannot be read: {error.strerror}.") from error


def upright(data: bytes) -> Image.Image:
  """Decodes an image and turns it as its EXIF orientation says."""
  if not data:
    raise BrokenImageError("empty")
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
  except UnidentifiedImageError:
    known = "JPEG, PNG, WebP, BMP or GIF"
    raise BrokenImageError(f"no {known} image") from None
  if image.width * image.height > MOST_PIXELS:
    raise BrokenImageError(
      f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}"
    )
  image.load()
  with contextlib.suppress(Exception):  # damaged EXIF; the pixels are whole
    ImageOps.exif_transpose(image, in_place=True)
  return image


def rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
    deep = np.asarray(image).clip(0, 65535).astype(np.int32)
    image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
  elif image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image if image.mode == "RGB" else image.convert("RGB")


def fingerprint(image: np.ndarray) -> int:
  """(H, W, 3) uint8 -> 64 bits that stand for its size and its bytes."""
  digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=8)
  digest.update(np.ascontiguousarray(image))
  return int.from_bytes(digest.digest(), "little")


def square(image: Image.Image, size: int, resize: str) -> Image.Image:
  if resize == "crop":
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
  return image.resize((size, size), Image.Resampling.BICUBIC)
