"""Image decoding: stored images of any kind to square RGB bytes."""

import concurrent.futures
import contextlib
import hashlib
import io
import itertools
import os
import warnings

import numpy as np

# WebP registers itself, as Pillow's commonest formats do anyway; otherwise its
# first image would make every thread import all of Pillow's plugins.
from PIL import (
  Image,
  ImageOps,
  UnidentifiedImageError,
  WebPImagePlugin,  # noqa: F401
)

from vit_ssl_jax import cli
from vit_ssl_jax.errors import line, reading

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
RESIZES = ("crop", "squash")

MAX_THREADS = 16  # more would wait for Python's lock
MAX_PIXELS = 2**26  # larger images are treated as decompression bombs
CHUNK = 8  # images that a thread takes at a time
BATCH = 64  # images read ahead, per thread


class BrokenImageError(ValueError):
  """An image that cannot be decoded; the message is the reason."""


def decode(file, size, resize):
  """Decodes one image to (S, S, 3) uint8, as an image viewer shows it.

  `file` is a path, an encoded image, or pixels, (H, W) or (H, W, 3) uint8.
  Applies the EXIF orientation, composites transparency on white, scales 16-bit
  grey to 8 bits and takes an animation's first frame. "crop" resizes the
  shorter side to S and takes the centre, "squash" ignores the aspect ratio;
  both are bicubic with antialiasing.
  """
  with quiet():
    return decode_stored(file, size, resize)[0]


def decode_all(out, files, resize, label="", progress=False):
  """Decodes N files, as of `decode`, into out, (N, S, S, 3) uint8, in threads.

  Returns:
    fingerprints: (N,) uint64, hashes of the stored images' size and RGB bytes,
      independent of S.
    broken: row -> reason of each broken image; these rows are zeros.
  """
  files, broken, start = iter(files), {}, 0
  fingerprints = np.zeros(len(out), np.uint64)

  def decode_chunk(rows):
    reasons = {}
    for row in rows:
      try:
        out[row], fingerprints[row] = decode_stored(
          batch[row - start], out.shape[1], resize
        )
      except BrokenImageError as error:
        out[row], reasons[row] = 0, str(error)
    return reasons

  threads = min(cores(), MAX_THREADS)
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
      for reasons in pool.map(decode_chunk, chunks):
        broken |= reasons
      bar.update(len(rows))
      start = stop
  if start != len(out):
    raise ValueError(f"{start} images for {len(out)} rows")
  return fingerprints, broken


def resized(images, size, resize):
  """(N, H, W, 3) uint8 -> (N, S, S, 3) uint8, resized as by `decode`."""
  if images.shape[1:3] == (size, size):
    return images
  out = np.empty((len(images), size, size, 3), np.uint8)
  decode_all(out, images, resize)
  return out


def progress_bar(total, label, progress):
  return cli.progress_bar(
    total, "image", label=label, disable=not progress, leave=False
  )


def cores():
  """Number of processor cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def quiet():
  """Hides Pillow's warnings in all threads, so none of a pool may enter it."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", module=r"PIL\b")
    yield


def decode_stored(file, size, resize):
  """The (S, S, 3) image and its fingerprint."""
  data = read(file)
  try:
    decoded = isinstance(data, np.ndarray)
    image = rgb(Image.fromarray(data) if decoded else upright(data))
    stored = np.asarray(image)
    if image.size == (size, size):
      return stored, fingerprint(stored)
    bicubic = Image.Resampling.BICUBIC
    if resize == "crop":
      image = ImageOps.fit(image, (size, size), bicubic)
    else:
      image = image.resize((size, size), bicubic)
    return np.asarray(image), fingerprint(stored)
  except (BrokenImageError, MemoryError):
    raise
  except Exception as error:  # Pillow's parsers raise errors of many types
    raise BrokenImageError(line(error)) from error


def read(file):
  if isinstance(file, bytes | np.ndarray):
    return file
  with reading(file), open(file, "rb") as opened:
    return opened.read()


def upright(data):
  """An encoded image, by its EXIF orientation."""
  if not data:
    raise BrokenImageError("empty")
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
  except UnidentifiedImageError:
    raise BrokenImageError("no JPEG, PNG, WebP, BMP or GIF image") from None
  if image.width * image.height > MAX_PIXELS:
    raise BrokenImageError(
      f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}"
    )
  image.load()
  with contextlib.suppress(Exception):  # damaged EXIF; the pixels are intact
    ImageOps.exif_transpose(image, in_place=True)
  return image


def rgb(image):
  if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
    deep = np.asarray(image).clip(0, 65535).astype(np.int32)
    image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
  elif image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image if image.mode == "RGB" else image.convert("RGB")


def fingerprint(image):
  """(H, W, 3) uint8 -> 64-bit hash of its size and bytes."""
  digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=8)
  digest.update(np.ascontiguousarray(image))
  return int.from_bytes(digest.digest(), "little")
