"""Augmentation of a batch: views for pretraining and images for fine-tuning."""

import jax
import jax.numpy as jnp

from vit_ssl_jax.augment.color import (
  color_jitter,
  random_blur,
  random_grayscale,
  random_solarize,
)
from vit_ssl_jax.augment.geometry import (
  pad_crop,
  random_erasing,
  random_flip,
  random_resized_crop,
)


def multi_crop(key, images, views, mean, std):
  """Global and local views of a batch (Caron et al., 2021), normalised.

  The views of image i depend on (key, i, image i) alone.

  Returns:
    Float32 global views (B, 2, S, S, 3) and local views (B, V, s, s, 3), by the
    config's `views`. Without `local_views` V is 0.
  """
  *blur_global, blur_local = views.blur_probability
  solarize_global = jnp.array([0.0, views.solarize_probability])

  def global_view(key, image, blur, solarize):
    size, scale = views.global_size, views.global_scale
    return view(key, image, views, size, scale, blur, solarize)

  def local_view(key, image):
    size, scale = views.local_size, views.local_scale
    return view(key, image, views, size, scale, blur_local, 0.0)

  def views_of(key, image):
    local_views = getattr(views, "local_views", 0)
    keys = jax.random.split(key, 2 + local_views)
    both = jax.vmap(global_view, (0, None, 0, 0))(
      keys[:2], image, jnp.array(blur_global), solarize_global
    )
    local = both[:0]
    if local_views:
      local = jax.vmap(local_view, (0, None))(keys[2:], image)
    return normalize(both, mean, std), normalize(local, mean, std)

  keys = jax.random.split(key, images.shape[0])
  images = images.astype(jnp.float32) / 255
  return jax.vmap(views_of)(keys, images)


def view(key, image, views, size, scale, blur, solarize):
  """One view (size, size, 3) of one image (H, W, 3) in [0, 1].

  The order is that of the paper's code (`DataAugmentation`). `scale` bounds the
  share of the area that is cropped; `blur` and `solarize` are probabilities.
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


def supervised(key, images, augment, mean, std):
  """Augmented and normalised images of a batch, for fine-tuning.

  Image i's result depends on (key, i, image i) alone. As in the paper's code,
  erasing comes last and writes the raw channel means: an erased pixel holds
  `mean` in normalised units, which is not the mean colour.
  """

  def augmented(key, image):
    keys = jax.random.split(key, 4)
    image = random_flip(keys[0], image, augment.flip_probability)
    image = pad_crop(keys[1], image, augment.crop_padding)
    if augment.autoaugment:  # a name in POLICIES, or "" for none
      from vit_ssl_jax.augment.autoaugment import autoaugment

      image = autoaugment(keys[2], image, augment.autoaugment)
    return random_erasing(
      keys[3],
      normalize(image, mean, std),
      augment.erasing_probability,
      augment.erasing_area,
      augment.erasing_aspect,
      fill=mean,
    )

  keys = jax.random.split(key, images.shape[0])
  return jax.vmap(augmented)(keys, images.astype(jnp.float32) / 255)


def evaluation_view(images, mean, std):
  """uint8 images (…, H, W, 3) to float32, normalised; nothing is random."""
  return normalize(images.astype(jnp.float32) / 255, mean, std)


def normalize(images, mean, std):
  """(images - mean) / std, for images (…, H, W, 3) in [0, 1]."""
  shape = (1,) * (images.ndim - 1) + (3,)
  mean = jnp.asarray(mean, jnp.float32).reshape(shape)
  std = jnp.asarray(std, jnp.float32).reshape(shape)
  return (images - mean) / std
