"""The views of the pretraining stage, and plain normalisation."""

import jax
import jax.numpy as jnp

from vit_ssl_jax.augment import color, geometry

BLUR_RADIUS = (0.1, 2.0)  # pixels, at every size, as in the paper's code
DRAWS = 34  # uniform numbers that one view takes


def normalize(images, mean, std):
  """Images (…, H, W, 3) in [0, 1] minus mean (3), over std (3)."""
  shape = (1,) * (images.ndim - 1) + (3,)
  mean = jnp.asarray(mean, jnp.float32).reshape(shape)
  std = jnp.asarray(std, jnp.float32).reshape(shape)
  return (images - mean) / std


def evaluation_view(images, mean, std):
  """uint8 images (…, H, W, 3) to float32, normalised; nothing is random."""
  return normalize(images.astype(jnp.float32) / 255, mean, std)


def view(
  draws, image, views, *, size, scale, blur_probability, solarize_probability
):
  """One view (size, size, 3) of one image (H, W, 3), not yet normalised.

  From uniform draws (DRAWS,): crop, flip, colour jitter, grey, blur and
  solarise, each with its probability, in the order of the paper's code
  (`DataAugmentation`).
  """
  crop, jitter, draws = draws[:22], draws[22:28], draws[28:]
  flip, color_too, grey, blur, solarize, radius = draws
  box = geometry.crop_box(crop.reshape(11, 2), *image.shape[:2], scale)
  image = geometry.resized_crop(image, box, size)
  image = jnp.where(flip < views.flip_probability, image[:, ::-1], image)
  image = jnp.where(
    color_too < views.color_jitter_probability,
    color.jitter(jitter, image, *views.color_jitter),
    image,
  )
  image = jnp.where(
    grey < views.grayscale_probability, color.grayscale(image), image
  )
  low, high = BLUR_RADIUS
  radius = low + radius * (high - low)
  image = color.gaussian_blur(
    image, jnp.where(blur < blur_probability, radius, 0.0)
  )
  return jnp.where(
    solarize < solarize_probability, color.solarize(image, 128), image
  )


def multi_crop(key, images, views, mean, std):
  """The global and local views of a batch, normalised float32.

  Images are uint8 (B, H, W, 3); the views (2, B, S, S, 3) and
  (V, B, s, s, 3), with S = views.global_size, V = views.local_views and
  s = views.local_size. The views of image i depend on (key, i, image i) only.
  """
  count, local = images.shape[0], views.local_views
  images = images.astype(jnp.float32) / 255
  draws = image_draws(key, count, (2 + local, DRAWS))
  blur_first, blur_second, blur_local = views.blur_probability

  def global_view(draws, image, blur, solarize):
    return view(
      draws,
      image,
      views,
      size=views.global_size,
      scale=views.global_scale,
      blur_probability=blur,
      solarize_probability=solarize,
    )

  def local_view(draws, image):
    return view(
      draws,
      image,
      views,
      size=views.local_size,
      scale=views.local_scale,
      blur_probability=blur_local,
      solarize_probability=0.0,
    )

  both = jax.vmap(global_view, (0, None, 0, 0))
  global_views = jax.vmap(both, (0, 0, None, None), out_axes=1)(
    draws[:, :2],
    images,
    jnp.array([blur_first, blur_second]),
    jnp.array([0.0, views.solarize_probability]),
  )
  if local:
    each = jax.vmap(local_view, (0, None))
    local_views = jax.vmap(each, out_axes=1)(draws[:, 2:], images)
  else:
    size = views.local_size
    local_views = jnp.zeros((0, count, size, size, 3))
  return normalize(global_views, mean, std), normalize(local_views, mean, std)


def image_draws(key, count, shape):
  """Uniform draws (count, *shape) in [0, 1); row i depends on (key, i) alone.

  All the randomness of an image comes from one call, because it is the calls
  to the generator that take long to compile.
  """
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
  return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
