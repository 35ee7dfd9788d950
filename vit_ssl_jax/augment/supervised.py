"""The augmentation of the fine-tuning stage."""

import jax
import jax.numpy as jnp

from vit_ssl_jax.augment.autoaugment import autoaugment
from vit_ssl_jax.augment.geometry import pad_crop, random_erasing, random_flip
from vit_ssl_jax.augment.multi_crop import normalize


def supervised_views(key, images, config, mean, std):
  """uint8 images (B, H, W, 3) to augmented, normalised float32 ones.

  Image i's result depends on (key, i, image i) alone.

  Args:
    key: PRNG key.
    images: (B, H, W, 3) uint8.
    config: the config's `augment`.
    mean, std: (3,), of the channels.
  """

  def supervised_view(key, image):
    return _supervised_view(key, image, config, mean, std)

  keys = jax.random.split(key, images.shape[0])
  return jax.vmap(supervised_view)(keys, images.astype(jnp.float32) / 255)


def _supervised_view(key, image, config, mean, std):
  """As in the paper's code the erasing comes last and writes the raw channel
  means: an erased pixel holds `mean` in normalised units, which is not the
  mean colour."""
  keys = jax.random.split(key, 4)
  image = random_flip(keys[0], image, config.flip_probability)
  image = pad_crop(keys[1], image, config.crop_padding)
  if config.autoaugment:  # a name in POLICIES, or "" for none
    image = autoaugment(keys[2], image, config.autoaugment)
  image = normalize(image, mean, std)
  return random_erasing(
    keys[3],
    image,
    config.erasing_probability,
    config.erasing_area,
    config.erasing_aspect,
    fill=mean,
  )
