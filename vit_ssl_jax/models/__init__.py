"""The architectures, all with one interface.

`build` gives a flax module; parameters are made by
`model.init(key, images, train=False)["params"]`, and `model.apply` takes
`method="features"` or `method="attention"` beside the default, the logits.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.errors import UserError, did_you_mean
from vit_ssl_jax.models import layers, positions
from vit_ssl_jax.models.architectures import (
  ARCHITECTURES,
  name_of,
  those_with,
)
from vit_ssl_jax.models.cait import CaiT
from vit_ssl_jax.models.heads import OffsetHead, ProjectionHead
from vit_ssl_jax.models.masked import PixelDecoder, draw_kept
from vit_ssl_jax.models.swin import SwinTransformer
from vit_ssl_jax.models.vit import VisionTransformer


def build(name, **sizes):
  """Builds an architecture by its name.

  Args:
    name: "vit", "swin" or "cait".
    **sizes: the module's attributes, such as image_size, patch_size,
      embed_dim, depth, num_heads, mlp_ratio, num_classes, drop_path_rate.

  Returns:
    A flax module: images (B, H, W, 3) float32, normalised, to logits
    (B, num_classes), or to features (B, D) where num_classes is 0.

  Raises:
    UserError: unknown name or size, or sizes that do not fit together.
  """
  if name not in ARCHITECTURES:
    known = ", ".join(ARCHITECTURES)
    raise UserError(f"unknown architecture {name!r}: possible are {known}")
  architecture = ARCHITECTURES[name].module
  known = [field.name for field in dataclasses.fields(architecture)]
  known = [field for field in known if field not in ("parent", "name")]
  for size in sizes:
    if size not in known:
      hint = did_you_mean(size, known) or f": possible are {', '.join(known)}"
      raise UserError(f"{name} has no size model.{size}{hint}")
  model = architecture(
    **{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}
  )
  model.check()
  return model


def init(model, key):
  """Fresh parameters of a model of `build`, compiled as one program."""
  images = jnp.zeros((1, model.image_size, model.image_size, 3))
  return jax.jit(lambda key: model.init(key, images, train=False)["params"])(
    key
  )


def drop_path(model, key, shape):
  """Masks of drop path for the models' `masks`, or None where nothing drops.

  Drawn once for a whole batch, they are the same however it is split up.

  Args:
    model: of `build`.
    key: PRNG key.
    shape: of the views that are dropped independently, such as (B,) or (B, V).

  Returns:
    (*shape, depth, 2) float32: 0 where dropped, 1 / (1 - rate) elsewhere.
  """
  if not model.drop_path_rate:
    return None
  return layers.drop_path_masks(key, model.drop_path_rates, shape)


def resize_parameters(params, model):
  """`positions.resize_parameters` to the sizes of a model of `build`."""
  return positions.resize_parameters(params, shapes(model))


@functools.cache
def shapes(model):
  """The parameters of a model of `build`, without computing any."""
  return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def count(model):
  """How many parameters a model of `build` has."""
  return sum(leaf.size for leaf in jax.tree.leaves(shapes(model)))


def attention_maps(attention):
  """The attention to each patch, head by head.

  It is the class token's; where there is none, what patches get from all others
  on average.

  Args:
    attention: (B, heads, N, M), of a model's `attention`.

  Returns:
    (B, heads, rows, columns).
  """
  attention = np.asarray(attention)
  rows, tokens = attention.shape[2:]
  side = math.isqrt(tokens)
  if rows == tokens == side**2:  # patches alone
    found = attention.mean(2)
  else:
    found = attention[:, :, 0, 1:]
    side = math.isqrt(tokens - 1)
  return found.reshape(*found.shape[:2], side, side)


def from_config(config, num_classes):
  """Builds the model that a run's config describes.

  Its body computes in config.dtype, where "auto" is bfloat16 on an accelerator
  and float32 on a CPU.

  Args:
    config: a run's config, with `model` (name and sizes), `dtype` and, if it
      is a younger one, `remat` and `kernels`.
    num_classes: C, or 0 for features alone.

  Raises:
    UserError: as of `build`.
  """
  sizes = {k: v for k, v in config.model.items() if k != "name"}
  dtype = compute_dtype(config)
  return build(
    config.model.name,
    num_classes=num_classes,
    dtype=dtype,
    remat=config.get("remat", False),
    fast_attention=config.get("kernels", "auto") == "auto",
    **sizes,
  )


def compute_dtype(config):
  """The type that config.dtype stands for on this machine."""
  if config.dtype != "auto":
    return jnp.dtype(config.dtype)
  return jnp.dtype(
    jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  )


def check_parameters(expected, given, source):
  """Checks that parameters have the names and shapes that a model wants.

  Args:
    expected, given: nested dicts of arrays.
    source: where `given` comes from, for the message.

  Raises:
    UserError: something differs; the message lists all of it.
  """
  want, have = named_shapes(expected), named_shapes(given)
  problems = [f"missing {name}" for name in want.keys() - have.keys()]
  problems += [f"left over {name}" for name in have.keys() - want.keys()]
  problems += [
    f"{name} has shape {have[name]} and not {want[name]}"
    for name in want.keys() & have.keys()
    if have[name] != want[name]
  ]
  if problems:
    listed = "; ".join(sorted(problems))
    raise UserError(f"{source} does not fit the model: {listed}")


def named_shapes(params):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {
    ".".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves
  }


__all__ = [
  "ARCHITECTURES",
  "CaiT",
  "OffsetHead",
  "PixelDecoder",
  "ProjectionHead",
  "SwinTransformer",
  "VisionTransformer",
  "attention_maps",
  "build",
  "check_parameters",
  "count",
  "draw_kept",
  "drop_path",
  "from_config",
  "init",
  "name_of",
  "resize_parameters",
  "shapes",
  "those_with",
]
