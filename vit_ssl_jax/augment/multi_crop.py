"""The views of the pretraining stage, and plain normalisation."""

import jax
import jax.numpy as jnp

from vit_ssl_jax.augment.color import (
  color_jitter,
  random_blur,
  random_grayscale,
  random_solarize,
)
from vit_ssl_jax.augment.geometry import random_flip, random_resized_crop


def multi_crop(key, images, views, mean, std):
  """The global and local views of a batch (Caron et al., 2021), normalised.

  The views of image i depend on (key, i, image i) alone.

  Args:
    key: PRNG key.
    images: (B, H, W, 3) uint8.
    views: the config's `views`; S is its global_size, s its local_size and V
      its local_views.
    mean, std: (3,), of the channels.

  Returns:
    Float32 global views (2, B, S, S, 3) and local views (V, B, s, s, 3).
  """
  blur_first, blur_second, blur_local = views.blur_probability
  blur_global = jnp.array([blur_first, blur_second])
  solarize_global = jnp.array([0.0, views.solarize_probability])

  def global_view(key, image, blur, solarize):
    size, scale = views.global_size, views.global_scale
    return view(key, image, views, size, scale, blur, solarize)

  def local_view(key, image):
    size, scale = views.local_size, views.local_scale
    return view(key, image, views, size, scale, blur_local, 0.0)

  def views_of(key, image):
    keys = jax.random.split(key, 2 + views.local_views)
    both = jax.vmap(global_view, (0, None, 0, 0))(
      keys[:2], image, blur_global, solarize_global
    )
    local = jax.vmap(local_view, (0, None))(keys[2:], image)
    return normalize(both, mean, std), normalize(local, mean, std)

  keys = jax.random.split(key, images.shape[0])
  images = images.astype(jnp.float32) / 255
  return jax.vmap(views_of, out_axes=1)(keys, images)


def view(key, image, views, size, scale, blur, solarize):
  """One view (size, size, 3) of one image (H, W, 3), not yet normalised.

  The order of the paper's code (`DataAugmentation`). Each step has a key of
  its own, so that one more at the end leaves the others' numbers alone.

  Args:
    key: PRNG key.
    image: (H, W, 3) in [0, 1].
    views: the config's `views`.
    size: of the view, in pixels.
    scale: smallest and largest share of the image's area that is cropped.
    blur, solarize: probabilities.
  """
  keys = jax.random.split(key, 6)
  image = random_resized_crop(keys[0], image, size, scale)
  image = random_flip(keys[1], image, views.flip_probability)
  image = color_jitter(
    keys[2], image, views.color_jitter_probability, views.color_jitter
  )
  image = random_grayscale(keys[3], image, views.grayscale_probability)
  image = random_blur(keys[4], image, blur)
  return random_solarize(keys[5], image, solarize)


def evaluation_view(images, mean, std):
  """uint8 images (…, H, W, 3) to float32, normalised; nothing is random."""
  return normalize(images.astype(jnp.float32) / 255, mean, std)


def normalize(images, mean, std):
  """Images (…, H, W, 3) in [0, 1] minus mean (3), over std (3)."""
  shape = (1,) * (images.ndim - 1) + (3,)
  mean = jnp.asarray(mean, jnp.float32).reshape(shape)
  std = jnp.asarray(std, jnp.float32).reshape(shape)
  return (images - mean) / std
