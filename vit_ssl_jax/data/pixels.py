"""Stored images to the one form that the rest works on: square RGB bytes."""

import collections
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
  ExifTags,
  Image,
  ImageOps,
  UnidentifiedImageError,
  WebPImagePlugin,  # noqa: F401
)

from vit_ssl_jax.cli import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
# To S×S: the shorter side to S and the middle cropped, or the aspect given up.
RESIZES = ("crop", "squash")
# A path, an encoded image, or pixels: (H, W) or (H, W, 3) uint8.
Stored = str | os.PathLike | bytes | np.ndarray

MOST_THREADS = 16  # more would wait for each other to hold Python's lock
CHUNK = 8  # images that a thread takes at a time
CHUNKS_AHEAD = 3  # read ahead of the slowest, per thread
# What turns an image upright, by its EXIF orientation.
TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


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
  with _quiet():
    return _decode(file, size, resize)[0]


def decode_all(
  out: np.ndarray,
  files: Iterable[Stored],
  resize: str,
  *,
  label: str,
  progress: bool,
) -> tuple[np.ndarray, dict[int, str]]:
  """Decodes N images into out, (N, S, S, 3) uint8, in threads.

  Args:
    out: where to; may be a np.memmap.
    files: N images as `decode` takes them, read only a little ahead.
    resize: one of `RESIZES`.
    label: what the progress bar says.
    progress: whether to draw it.

  Returns:
    fingerprints: (N,) uint64, a hash of each image's size and RGB bytes as it
      is stored, whatever the size it is resized to.
    broken: the row -> why, of images that are broken; these rows are zeros.

  Raises:
    UserError: a file cannot be read.
    ValueError: there are more or fewer images than rows.
  """
  files, broken, done = iter(files), {}, 0
  fingerprints = np.zeros(len(out), np.uint64)
  threads = min(_cores(), MOST_THREADS)
  pool = concurrent.futures.ThreadPoolExecutor(threads)
  with progress_bar(len(out), label, progress) as bar, _quiet():
    try:
      waiting = collections.deque()
      for start in itertools.count(step=CHUNK):
        chunk = list(itertools.islice(files, CHUNK))
        if chunk:
          waiting.append(
            pool.submit(_decode_chunk, out, fingerprints, start, chunk, resize)
          )
        while waiting and (not chunk or len(waiting) > CHUNKS_AHEAD * threads):
          count, found = waiting.popleft().result()
          broken |= found
          done += count
          bar.update(count)
        if not chunk:
          break
    finally:
      pool.shutdown(cancel_futures=True)
  if done != len(out):
    raise ValueError(f"{done} images for {len(out)} rows")
  return fingerprints, broken


def square_rgb(
  images: np.ndarray, image_size: int, *, resize: str, progress: bool = False
) -> np.ndarray:
  """(N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8 -> (N, S, S, 3) uint8.

  Images of another size are resized as `decode` does; grey is repeated over
  the three channels.
  """
  if images.shape[-1] == 1 and images.ndim == 4:
    images = images[..., 0]
  if images.shape[1:3] == (image_size, image_size):
    if images.ndim == 3:
      images = np.repeat(images[..., None], 3, axis=-1)
    return np.ascontiguousarray(images)
  out = np.empty((len(images), image_size, image_size, 3), np.uint8)
  decode_all(out, images, resize, label="resizing", progress=progress)
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


def _cores() -> int:
  """How many processor cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def _quiet():
  """Hides Pillow's warnings: of odd EXIF, large images and the like.

  What hinders decoding is an error. This changes the filters of all threads,
  and so is not for those of a pool to enter.
  """
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", module=r"PIL\b")
    yield


def _decode_chunk(
  out, fingerprints, start, chunk, resize
) -> tuple[int, dict[int, str]]:
  broken = {}
  for row, file in enumerate(chunk, start):
    if row >= len(out):
      raise ValueError(f"more images than {len(out)} rows")
    try:
      out[row], fingerprints[row] = _decode(file, out.shape[1], resize)
    except BrokenImageError as error:
      out[row], broken[row] = 0, str(error)
  return len(chunk), broken


def _decode(file: Stored, size: int, resize: str) -> tuple[np.ndarray, int]:
  data = _read(file)
  try:
    if isinstance(data, np.ndarray):
      image = Image.fromarray(data)
    else:
      image = _upright(data)
    image = _rgb(image)
    stored = np.asarray(image)
    if image.size == (size, size):
      return stored, _fingerprint(stored)
    return np.asarray(_square(image, size, resize)), _fingerprint(stored)
  except (BrokenImageError, MemoryError):
    raise
  except Exception as error:  # Pillow raises whatever its parsers stumble over
    why = " ".join(str(error).split()).rstrip(".")[:120]
    raise BrokenImageError(why or type(error).__name__) from error


def _read(file: Stored) -> bytes | np.ndarray:
  if isinstance(file, bytes | np.ndarray):
    return file
  try:
    with open(file, "rb") as opened:
      return opened.read()
  except OSError as error:
    raise UserError(f"{file} cannot be read: {error.strerror}.") from error


def _upright(data: bytes) -> Image.Image:
  """Decodes an image and turns it as its EXIF orientation says."""
  if not data:
    raise BrokenImageError("empty")
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
  except UnidentifiedImageError:
    known = "JPEG, PNG, WebP, BMP or GIF"
    raise BrokenImageError(f"no {known} image") from None
  image.load()
  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation)
  except Exception:  # damaged EXIF; the pixels are whole
    orientation = None
  turn = TURNS.get(orientation)
  return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
    deep = np.asarray(image).clip(0, 65535).astype(np.int32)
    image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
  elif image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image if image.mode == "RGB" else image.convert("RGB")


def _fingerprint(image: np.ndarray) -> int:
  """(H, W, 3) uint8 -> 64 bits that stand for its size and its bytes."""
  digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=8)
  digest.update(np.ascontiguousarray(image))
  return int.from_bytes(digest.digest(), "little")


def _square(image: Image.Image, size: int, resize: str) -> Image.Image:
  if resize == "crop":
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
  return image.resize((size, size), Image.Resampling.BICUBIC)
