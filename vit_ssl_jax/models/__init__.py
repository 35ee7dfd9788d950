"""The architectures, behind one interface.

`build` gives a Flax module, `init` its parameters. `model.apply` returns
logits, and features with `method="features"`.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vit_ssl_jax.errors import UserError, did_you_mean
from vit_ssl_jax.models import positions
from vit_ssl_jax.models.architectures import (
  ARCHITECTURES,
  name_of,
  those_with,
)
from vit_ssl_jax.models.backbone import drop_path
from vit_ssl_jax.models.cait import CaiT
from vit_ssl_jax.models.heads import OffsetHead, ProjectionHead
from vit_ssl_jax.models.layers import take
from vit_ssl_jax.models.swin import SwinTransformer
from vit_ssl_jax.models.vit import VisionTransformer


def build(name, **sizes):
  """Builds an architecture.

  Args:
    name: "vit", "swin" or "cait".
    **sizes: the module's attributes, such as image_size, patch_size,
      embed_dim, depth, num_heads, mlp_ratio, num_classes, drop_path_rate.

  Returns:
    A Flax module: images (B, H, W, 3) float32, normalised, to logits
    (B, num_classes), or to features (B, D) if num_classes is 0.

  Raises:
    UserError: unknown name or size, or sizes that do not fit together.
  """
  if name not in ARCHITECTURES:
    known = ", ".join(ARCHITECTURES)
    raise UserError(f"unknown architecture {name!r}: possible are {known}")
  architecture = ARCHITECTURES[name].module
  known = {field.name for field in dataclasses.fields(architecture)}
  known = sorted(known - {"parent", "name"})
  for size in sizes:
    if size not in known:
      hint = did_you_mean(size, known) or f": possible are {', '.join(known)}"
      raise UserError(f"{name} has no size model.{size}{hint}")
  model = architecture(
    **{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}
  )
  model.check()
  return model


def from_config(config, num_classes):
  """Builds the model of a run's config; num_classes 0 returns features."""
  sizes = {k: v for k, v in config.model.items() if k != "name"}
  return build(
    config.model.name,
    num_classes=num_classes,
    dtype=compute_dtype(config),
    remat=bool(config.get("remat")),
    **sizes,
  )


def compute_dtype(config):
  """config.dtype; "auto" is float32 on a CPU, bfloat16 on an accelerator."""
  on_cpu = jax.default_backend() == "cpu"
  automatic = jnp.float32 if on_cpu else jnp.bfloat16
  return jnp.dtype(automatic if config.dtype == "auto" else config.dtype)


def init(model, key):
  """Initialises the parameters of a model, compiled as one program."""
  images = jnp.zeros((1, model.image_size, model.image_size, 3))
  return jax.jit(lambda key: model.init(key, images, train=False)["params"])(
    key
  )


@functools.cache
def shapes(model):
  """The shapes of a model's parameters."""
  return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def count(model):
  """The number of a model's parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(shapes(model)))


def attention(model, params, images, block=-1):
  """Computes the attention weights of one block.

  Args:
    model: of `build`.
    params: its parameters.
    images: (B, H, W, 3) float32, normalised.
    block: number of the block, from the end if negative.

  Returns:
    (B, heads, N, M) float32, the softmax of queries n over keys m. The order
    of tokens is the architecture's.

  Raises:
    UserError: the model has no such block.
  """
  _, variables = model.apply(
    {"params": params},
    images,
    method="logits_and_grid",
    mutable="intermediates",
  )
  sown = traverse_util.flatten_dict(variables["intermediates"])
  weights = []
  for path in sorted(sown, key=lambda path: numbers_in(path[0])):
    (x,) = sown[path]
    weights += list(x) if x.ndim == 5 else [x]  # a scan stacks its blocks
  if not -len(weights) <= block < len(weights):
    raise UserError(f"no block {block}: the model has {len(weights)} blocks")
  return weights[block]


def numbers_in(name):
  return [int(digits) for digits in re.findall(r"\d+", name)]


def attention_maps(attention):
  """Attention weights of each patch, by head.

  They are the class token's, or without one the mean over all patches.

  Args:
    attention: (B, heads, N, M), of `attention`.

  Returns:
    (B, heads, rows, columns).
  """
  attention = np.asarray(attention)
  rows, tokens = attention.shape[2:]
  if rows == tokens == math.isqrt(tokens) ** 2:  # patches alone
    maps = attention.mean(2)
  else:
    maps = attention[:, :, 0, 1:]
  side = math.isqrt(maps.shape[-1])
  return maps.reshape(*maps.shape[:2], side, side)


def resize_parameters(params, model):
  """`positions.resize_parameters` to the sizes of a model."""
  return positions.resize_parameters(params, shapes(model))


def check_parameters(expected, params, source):
  """Checks names and shapes of parameters.

  Args:
    expected, params: nested dicts of arrays.
    source: where `params` comes from, for the message.

  Raises:
    UserError: lists all differences.
  """
  want, have = named_shapes(expected), named_shapes(params)
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
  flat = traverse_util.flatten_dict(params, sep=".")
  return {name: leaf.shape for name, leaf in flat.items()}


__all__ = [
  "ARCHITECTURES",
  "CaiT",
  "OffsetHead",
  "ProjectionHead",
  "SwinTransformer",
  "VisionTransformer",
  "attention",
  "attention_maps",
  "build",
  "check_parameters",
  "count",
  "drop_path",
  "from_config",
  "init",
  "name_of",
  "resize_parameters",
  "shapes",
  "take",
  "those_with",
]
