"""AutoAugment (Cubuk et al., 2019) of one image (H, W, 3) in [0, 1]."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.augment import color, geometry

ENHANCEMENTS = ("color", "contrast", "sharpness", "brightness")
# A level, 0 to 9, indexes its operation's magnitudes.
MAGNITUDES = {
  **dict.fromkeys(("shearX", "shearY"), np.linspace(0, 0.3, 10).tolist()),
  **dict.fromkeys(
    ("translateX", "translateY"), np.linspace(0, 150 / 331, 10).tolist()
  ),
  "rotate": np.linspace(0, 30, 10).tolist(),
  "posterize": np.round(np.linspace(8, 4, 10)).tolist(),
  "solarize": np.linspace(256, 0, 10).tolist(),
  **dict.fromkeys(ENHANCEMENTS, np.linspace(0, 0.9, 10).tolist()),
  **dict.fromkeys(("autocontrast", "equalize", "invert"), [0.0] * 10),
}

# Each takes (image, parameter), see `_parameters`.
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
  """Applies one operation at a level, 0 to 9, with a sign, -1 or 1."""
  parameters = jnp.asarray(_parameters(name), jnp.float32)
  side = jnp.where(sign > 0, 1, 0)
  return OPERATIONS[name](image, parameters[side, level])


def autoaugment(key, image, policy):
  """Applies a random sub-policy of POLICIES[policy] to one image (H, W, 3)."""
  choice_key, *step_keys = jax.random.split(key, 3)
  sub_policies = POLICIES[policy]
  chosen = jax.random.randint(choice_key, (), 0, len(sub_policies))
  first, second = zip(*sub_policies, strict=True)
  image = _apply_step(step_keys[0], image, first, chosen)
  return _apply_step(step_keys[1], image, second, chosen)


def _apply_step(key, image, steps, chosen):
  """Applies steps[chosen], a (probability, operation, level), to the image."""
  probabilities, names, levels = zip(*steps, strict=True)
  operations = sorted(set(names))
  indices = [operations.index(name) for name in names]
  draws = jax.random.uniform(key, (2,))
  changed = jax.lax.switch(
    jnp.array(indices)[chosen],
    [functools.partial(apply_operation, name) for name in operations],
    image,
    jnp.array(levels)[chosen],
    jnp.where(draws[1] < 0.5, -1, 1),
  )
  apply = draws[0] < jnp.array(probabilities)[chosen]
  return jnp.where(apply, changed, image)


def _parameters(name):
  """Parameters (2, 10) of an operation, by sign (-, +) and level."""
  magnitude = np.array(MAGNITUDES[name])
  if name in ENHANCEMENTS:
    return np.stack([1 - magnitude, 1 + magnitude])
  if name.startswith(("shear", "translate")):
    return np.stack([-magnitude, magnitude])
  return np.stack([magnitude, magnitude])
