"""The names and layouts of timm (Wightman, 2019), and its arguments.

They are those of its VisionTransformer, SwinTransformer and Cait. Its Swin
merges patches at the beginning of a stage, the reference's at the end of the
one before, and keeps no table of relative positions.
"""

import functools

import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import renaming, weights

PATCHES = "patch_embed.proj.weight"


def timm_arguments(model):
  """What `timm.create_model` makes a model from that has the same logits.

  They are the same for images of `model.image_size`; without classes its output
  are the features.

  Args:
    model: a model of `models.build`.

  Returns:
    A name of timm's, a dict of keyword arguments. All of them can be written as
    JSON, except for Swin's norm_layer: it has to be a class, and is
    `functools.partial(torch.nn.LayerNorm, eps=1e-6)`.

  Raises:
    UserError: timm cannot express the model, or Swin without torch.
  """
  name, given = arguments(model)
  if isinstance(model, models.SwinTransformer):
    # With our epsilon; that of timm's Swin is 1e-5.
    norm = weights.torch_module("arguments of timm's Swin").nn.LayerNorm
    given["norm_layer"] = functools.partial(norm, eps=1e-6)
  return name, given


def arguments(model):
  """`timm_arguments` but for norm_layer."""
  check(model)
  given = {
    "img_size": model.image_size,
    "patch_size": model.patch_size,
    "embed_dim": model.embed_dim,
    "mlp_ratio": model.mlp_ratio,
    "num_classes": model.num_classes,
    "num_heads": model.num_heads,
    "drop_path_rate": model.drop_path_rate,
  }
  if isinstance(model, models.SwinTransformer):
    given |= {"depths": model.depths, "window_size": model.window_size}
  else:
    given["depth"] = model.depth
  if isinstance(model, models.CaiT):
    given |= {
      "depth_token_only": model.depth_token_only,
      "mlp_ratio_token_only": 4.0,
      "init_values": model.layer_scale_init,
    }
  return models.ARCHITECTURES[models.name_of(model)].timm, given


def check(model):
  """Raises a UserError where timm cannot express a model."""
  renaming.check(model, "timm")
  if isinstance(model, models.CaiT) and not model.layer_scale_init:
    raise UserError(
      "timm's Cait always has LayerScale, and model.layer_scale_init=0 has none"
    )
  if not isinstance(model, models.SwinTransformer):
    return
  for stage, depth, side in renaming.stages(model):
    window = min(model.window_size, side)
    if depth > 1 and side % window:
      raise UserError(
        f"timm's Swin pads after it shifts windows, and ours before: with"
        f" model.window_size={window}, which does not divide the {side} patches"
        f" a side of stage {stage}, shifted windows hold other patches there"
      )


def names(name, model):
  """timm's name of the reference's array, in a list."""
  match name.split("."):
    case ["patch_embed", "1", leaf]:
      return [f"patch_embed.proj.{leaf}"]
    case ["layers", stage, "downsample", *inner]:
      return [".".join(["layers", str(int(stage) + 1), "downsample", *inner])]
    case ["head", leaf] if isinstance(model, models.SwinTransformer):
      return [f"head.fc.{leaf}"]
  return [name]


def to_torch(params, model):
  """As in the package's `to_torch`."""
  check(model)
  state = renaming.to_torch(params, model, names)
  if isinstance(model, models.CaiT):
    # A linear layer over patches in the reference, a convolution here.
    p = model.patch_size
    kernel = state[PATCHES].reshape(model.embed_dim, p, p, -1)
    state[PATCHES] = np.array(kernel.transpose(0, 3, 1, 2), order="C")
  return state


def from_torch(state_dict, model):
  """As in the package's `from_torch`."""
  check(model)
  return renaming.from_torch(state_dict, model, names, to_torch)
