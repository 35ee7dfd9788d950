"""Stored images to the one form that the rest works on: square RGB bytes."""

import numpy as np
import tqdm
from PIL import Image


def square_rgb(
  images: np.ndarray, image_size: int, *, progress: bool = False
) -> np.ndarray:
  """(N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8 -> (N, S, S, 3) uint8.

  Images of another size are resized to S×S, bicubic with antialiasing,
  whatever their aspect; grey is repeated over the three channels.
  """
  if images.ndim == 3:
    images = images[..., None]
  if images.shape[1:3] != (image_size, image_size):
    images = _resize(images, image_size, progress)
  if images.shape[-1] == 1:
    images = np.repeat(images, 3, axis=-1)
  return np.ascontiguousarray(images)


def bar_off(progress: bool) -> bool | None:
  """tqdm's `disable`: no bar where none is wanted, or in a log file."""
  return None if progress else True


def _resize(images: np.ndarray, size: int, progress: bool) -> np.ndarray:
  out = np.empty((len(images), size, size, images.shape[-1]), np.uint8)
  grey = images.shape[-1] == 1
  bar = tqdm.tqdm(
    images,
    desc="resizing",
    unit="image",
    leave=False,
    disable=bar_off(progress),
  )
  for i, image in enumerate(bar):
    picture = Image.fromarray(image[..., 0] if grey else image)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    out[i] = np.asarray(picture).reshape(out.shape[1:])
  return out
