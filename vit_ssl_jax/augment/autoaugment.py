"""AutoAugment (Cubuk et al., 2019) and the views of the fine-tuning stage."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.augment import color, geometry
from vit_ssl_jax.augment.multi_crop import image_draws, normalize

# A level, 0 to 9, indexes its operation's magnitudes.
MAGNITUDES = {
  "shearX": np.linspace(0, 0.3, 10).tolist(),
  "shearY": np.linspace(0, 0.3, 10).tolist(),
  "translateX": np.linspace(0, 150 / 331, 10).tolist(),
  "translateY": np.linspace(0, 150 / 331, 10).tolist(),
  "rotate": np.linspace(0, 30, 10).tolist(),
  "color": np.linspace(0, 0.9, 10).tolist(),
  "posterize": np.round(np.linspace(8, 4, 10)).tolist(),
  "solarize": np.linspace(256, 0, 10).tolist(),
  "contrast": np.linspace(0, 0.9, 10).tolist(),
  "sharpness": np.linspace(0, 0.9, 10).tolist(),
  "brightness": np.linspace(0, 0.9, 10).tolist(),
  "autocontrast": [0.0] * 10,
  "equalize": [0.0] * 10,
  "invert": [0.0] * 10,
}

# Images that sub-policies are dealt among; 25 sub-policies make 75 slots.
TABLE = 64
# Each takes (image, parameter); `_parameters` has the parameters of the levels.
OPERATIONS = {
  "shearX": geometry.shear_x,
  "shearY": geometry.shear_y,
  "translateX": geometry.translate_x,
  "translateY": geometry.translate_y,
  "rotate": geometry.rotate,
  "color": color.saturation,
  "posterize": color.posterize,
  "solarize": color.solarize,
  "contrast": color.contrast,
  "sharpness": color.sharpness,
  "brightness": color.brightness,
  "autocontrast": lambda image, _: color.autocontrast(image),
  "equalize": lambda image, _: color.equalize(image),
  "invert": lambda image, _: color.invert(image),
}

# Sub-policies: two steps of (probability, operation, level) each.
POLICIES = {
  "cifar": (
    ((0.1, "invert", 7), (0.2, "contrast", 6)),
    ((0.7, "rotate", 2), (0.3, "translateX", 9)),
    ((0.8, "sharpness", 1), (0.9, "sharpness", 3)),
    ((0.5, "shearY", 8), (0.7, "translateY", 9)),
    ((0.5, "autocontrast", 8), (0.9, "equalize", 2)),
    ((0.2, "shearY", 7), (0.3, "posterize", 7)),
    ((0.4, "color", 3), (0.6, "brightness", 7)),
    ((0.3, "sharpness", 9), (0.7, "brightness", 9)),
    ((0.6, "equalize", 5), (0.5, "equalize", 1)),
    ((0.6, "contrast", 7), (0.6, "sharpness", 5)),
    ((0.7, "color", 7), (0.5, "translateX", 8)),
    ((0.3, "equalize", 7), (0.4, "autocontrast", 8)),
    ((0.4, "translateY", 3), (0.2, "sharpness", 6)),
    ((0.9, "brightness", 6), (0.2, "color", 8)),
    ((0.5, "solarize", 2), (0.0, "invert", 3)),
    ((0.2, "equalize", 0), (0.6, "autocontrast", 0)),
    ((0.2, "equalize", 8), (0.6, "equalize", 4)),
    ((0.9, "color", 9), (0.6, "equalize", 6)),
    ((0.8, "autocontrast", 4), (0.2, "solarize", 8)),
    ((0.1, "brightness", 3), (0.7, "color", 0)),
    ((0.4, "solarize", 5), (0.9, "autocontrast", 3)),
    ((0.9, "translateY", 9), (0.7, "translateY", 9)),
    ((0.9, "autocontrast", 2), (0.8, "solarize", 3)),
    ((0.8, "equalize", 8), (0.1, "invert", 3)),
    ((0.7, "translateY", 9), (0.9, "autocontrast", 1)),
  ),
  "svhn": (
    ((0.9, "shearX", 4), (0.2, "invert", 3)),
    ((0.9, "shearY", 8), (0.7, "invert", 5)),
    ((0.6, "equalize", 5), (0.6, "solarize", 6)),
    ((0.9, "invert", 3), (0.6, "equalize", 3)),
    ((0.6, "equalize", 1), (0.9, "rotate", 3)),
    ((0.9, "shearX", 4), (0.8, "autocontrast", 3)),
    ((0.9, "shearY", 8), (0.4, "invert", 5)),
    ((0.9, "shearY", 5), (0.2, "solarize", 6)),
    ((0.9, "invert", 6), (0.8, "autocontrast", 1)),
    ((0.6, "equalize", 3), (0.9, "rotate", 3)),
    ((0.9, "shearX", 4), (0.3, "solarize", 3)),
    ((0.8, "shearY", 8), (0.7, "invert", 4)),
    ((0.9, "equalize", 5), (0.6, "translateY", 6)),
    ((0.9, "invert", 4), (0.6, "equalize", 7)),
    ((0.3, "contrast", 3), (0.8, "rotate", 4)),
    ((0.8, "invert", 5), (0.0, "translateY", 2)),
    ((0.7, "shearY", 6), (0.4, "solarize", 8)),
    ((0.6, "invert", 4), (0.8, "rotate", 4)),
    ((0.3, "shearY", 7), (0.9, "translateX", 3)),
    ((0.1, "shearX", 6), (0.6, "invert", 5)),
    ((0.7, "solarize", 2), (0.6, "translateY", 7)),
    ((0.8, "shearY", 4), (0.8, "invert", 8)),
    ((0.7, "shearX", 9), (0.8, "translateY", 3)),
    ((0.8, "shearY", 5), (0.7, "autocontrast", 3)),
    ((0.7, "shearX", 2), (0.1, "invert", 5)),
  ),
  "imagenet": (
    ((0.4, "posterize", 8), (0.6, "rotate", 9)),
    ((0.6, "solarize", 5), (0.6, "autocontrast", 5)),
    ((0.8, "equalize", 8), (0.6, "equalize", 3)),
    ((0.6, "posterize", 7), (0.6, "posterize", 6)),
    ((0.4, "equalize", 7), (0.2, "solarize", 4)),
    ((0.4, "equalize", 4), (0.8, "rotate", 8)),
    ((0.6, "solarize", 3), (0.6, "equalize", 7)),
    ((0.8, "posterize", 5), (1.0, "equalize", 2)),
    ((0.2, "rotate", 3), (0.6, "solarize", 8)),
    ((0.6, "equalize", 8), (0.4, "posterize", 6)),
    ((0.8, "rotate", 8), (0.4, "color", 0)),
    ((0.4, "rotate", 9), (0.6, "equalize", 2)),
    ((0.0, "equalize", 7), (0.8, "equalize", 8)),
    ((0.6, "invert", 4), (1.0, "equalize", 8)),
    ((0.6, "color", 4), (1.0, "contrast", 8)),
    ((0.8, "rotate", 8), (1.0, "color", 2)),
    ((0.8, "color", 8), (0.8, "solarize", 7)),
    ((0.4, "sharpness", 7), (0.6, "invert", 8)),
    ((0.6, "shearX", 5), (1.0, "equalize", 9)),
    ((0.4, "color", 0), (0.6, "equalize", 3)),
    ((0.4, "equalize", 7), (0.2, "solarize", 4)),
    ((0.6, "solarize", 5), (0.6, "autocontrast", 5)),
    ((0.6, "invert", 4), (1.0, "equalize", 8)),
    ((0.6, "color", 4), (1.0, "contrast", 8)),
    ((0.8, "equalize", 8), (0.6, "equalize", 3)),
  ),
}


def apply_operation(name, image, level, sign):
  """One AutoAugment operation on one image (H, W, 3) in [0, 1].

  The level, 0 to 9, gives the magnitude; the sign, -1 or 1, its direction
  where the operation has one. Both may be traced.
  """
  parameters = jnp.asarray(_parameters(name), jnp.float32)
  side = jnp.where(sign > 0, 1, 0)
  return OPERATIONS[name](image, parameters[side, level])


def autoaugment(key, images, policy):
  """One sub-policy of POLICIES[policy] on each of images (B, H, W, 3).

  Each image's sub-policy is uniform; `deal` says how.
  """
  deal_key, image_key = jax.random.split(key)
  draws = image_draws(image_key, images.shape[0], (4,))
  return deal(deal_key, draws, images, policy)


def deal(key, draws, images, policy):
  """`autoaugment` with each image's own draws (B, 4): for either step,
  whether it is done and its sign.

  The sub-policies are dealt like cards: each has the same number of slots,
  at least B in all, and a random permutation seats the images. So each
  image's sub-policy is uniform, and the slots of one operation are a static
  slice: an operation is computed only for the images that it was drawn for.
  A large batch is dealt in tables of TABLE images, so that those on one device
  are not dealt among all.
  """
  tables = max(images.shape[0] // TABLE, 1)
  if images.shape[0] != tables * TABLE:
    return _deal_table(key, draws, images, policy)

  def parted(x):
    return x.reshape(tables, TABLE, *x.shape[1:])

  dealt = jax.vmap(_deal_table, (0, 0, 0, None))(
    jax.random.split(key, tables), parted(draws), parted(images), policy
  )
  return dealt.reshape(images.shape)


def _deal_table(key, draws, images, policy):
  """`deal` for the images of one table."""
  count = images.shape[0]
  table = sorted(POLICIES[policy], key=lambda pair: pair[0][1])
  pairs = [pair for pair in table for _ in range(-(-count // len(table)))]
  order = np.array(
    sorted(range(len(pairs)), key=lambda slot: pairs[slot][1][1])
  )
  image_of_slot = jax.random.permutation(key, len(pairs))
  slot_of_image = jnp.argsort(image_of_slot)[:count]
  # Slots that are left over repeat some image, and are dropped at the end.
  slots, draws = images[image_of_slot % count], draws[image_of_slot % count]
  slots = _stage(draws[:, :2], slots, [first for first, _ in pairs])
  seconds = [pairs[slot][1] for slot in order]
  slots = _stage(draws[order, 2:], slots[order], seconds)
  return slots[jnp.asarray(np.argsort(order))[slot_of_image]]


def finetune_views(key, images, config, mean, std):
  """uint8 images (B, H, W, 3) to augmented, normalised float32 ones.

  Flip, crop from the padded image, AutoAugment (a name in POLICIES, or "" for
  none), normalise, erase. As in the paper's code the erasing comes last and
  writes the raw channel means: an erased pixel holds `mean` in normalised
  units, which is not the mean colour.
  """
  count, tries = images.shape[0], geometry.ERASING_TRIES + 2
  images = images.astype(jnp.float32) / 255
  deal_key, image_key = jax.random.split(key)
  draws = image_draws(image_key, count, (7 + 2 * tries,))
  shift, policy, erasing = draws[:, :3], draws[:, 3:7], draws[:, 7:]

  def flip_and_crop(draws, image):
    flip = draws[0] < config.flip_probability
    image = jnp.where(flip, image[:, ::-1], image)
    return geometry.shifted_crop(draws[1:], image, config.crop_padding)

  def erase(draws, image):
    return geometry.erase(
      draws.reshape(tries, 2),
      image,
      config.erasing_probability,
      config.erasing_area,
      config.erasing_aspect,
      mean,
    )

  images = jax.vmap(flip_and_crop)(shift, images)
  if config.autoaugment:
    images = deal(deal_key, policy, images, config.autoaugment)
  return jax.vmap(erase)(erasing, normalize(images, mean, std))


def _stage(draws, slots, steps):
  """Applies steps[s] = (probability, operation, level) to slots[s].

  Draws (S, 2) say whether, and with which sign. Steps of one operation stand
  next to each other, and run as one vmap.
  """
  chances = np.array([step[0] for step in steps], np.float32)
  apply = (draws[:, 0] < chances)[:, None, None, None]
  sign = jnp.where(draws[:, 1] < 0.5, -1, 1)
  levels = np.array([step[2] for step in steps])
  done, start = [], 0
  for name, group in itertools.groupby(step[1] for step in steps):
    part = slice(start, start + len(list(group)))
    start = part.stop
    changed = jax.vmap(apply_operation, (None, 0, 0, 0))(
      name, slots[part], levels[part], sign[part]
    )
    done.append(jnp.where(apply[part], changed, slots[part]))
  return jnp.concatenate(done)


def _parameters(name):
  """(2, 10) parameters, for the signs - and +, of an operation's levels.

  The enhancing operations take a factor, 1 being the image; those whose
  magnitude has no direction take it alone (rotation is counter-clockwise).
  """
  magnitude = np.array(MAGNITUDES[name])
  if name in ("color", "contrast", "sharpness", "brightness"):
    return np.stack([1 - magnitude, 1 + magnitude])
  if name.startswith(("shear", "translate")):
    return np.stack([-magnitude, magnitude])
  return np.stack([magnitude, magnitude])
