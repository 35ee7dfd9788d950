"""The names and layouts of timm (Wightman, 2019), and its arguments.

timm's Swin merges patches at the beginning of a stage, the reference's at the
end of the one before, and it keeps no index of relative positions.
"""

import functools

import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import read, renaming

NORM = "functools.partial(torch.nn.LayerNorm, eps=1e-6)"  # of Swin
PATCHES = "patch_embed.proj.weight"
# Our names of timm's arguments.
SIZES = {"img_size": "image_size", "init_values": "layer_scale_init"} | {
  name: name
  for name in (
    *("patch_size", "embed_dim", "depth", "depths", "depth_token_only"),
    *("num_heads", "mlp_ratio", "window_size", "num_classes", "drop_path_rate"),
  )
}


def timm_arguments(model):
  """Returns a name and keyword arguments for `timm.create_model`.

  timm's model has the same logits, or without classes features, for images of
  `model.image_size`. JSON can hold all arguments except Swin's norm_layer.

  Raises:
    UserError: timm cannot express the model, or torch is missing.
  """
  name, kwargs = arguments(model)
  if is_swin(model):
    # Our epsilon; the default of timm's Swin is 1e-5.
    norm = read.import_torch("timm's Swin").nn.LayerNorm
    kwargs["norm_layer"] = functools.partial(norm, eps=1e-6)
  return name, kwargs


def arguments(model):
  """Returns `timm_arguments` without norm_layer."""
  check(model)
  kwargs = {
    key: getattr(model, size)
    for key, size in SIZES.items()
    if hasattr(model, size)
  }
  if "depth_token_only" in kwargs:
    kwargs["mlp_ratio_token_only"] = 4.0
  return models.ARCHITECTURES[models.name_of(model)].timm, kwargs


def is_swin(model):
  return isinstance(model, models.SwinTransformer)


def check(model):
  """Checks that timm can express a model."""
  renaming.check(model, "timm")
  if getattr(model, "layer_scale_init", 1) == 0:
    raise UserError(
      "timm's Cait always has LayerScale, and model.layer_scale_init=0 has none"
    )
  for stage, depth, side in renaming.stages(model) if is_swin(model) else ():
    window = min(model.window_size, side)
    if depth > 1 and side % window:
      raise UserError(
        "timm's Swin pads after it shifts windows, and ours before:"
        f" model.window_size={window} must divide the {side} patches a side of"
        f" stage {stage}"
      )


def names(name, model):
  """Returns timm's name of the reference's array, in a list."""
  match name.split("."):
    case ["patch_embed", "1", leaf]:
      return [f"patch_embed.proj.{leaf}"]
    case ["layers", stage, "downsample", *inner]:
      return [".".join(["layers", str(int(stage) + 1), "downsample", *inner])]
    case ["head", leaf] if is_swin(model):
      return [f"head.fc.{leaf}"]
  return [name]


def to_torch(params, model):
  """Converts parameters as the package's `to_torch` does."""
  check(model)
  state = renaming.to_torch(params, model, names)
  if state[PATCHES].ndim == 2:
    # CaiT: a linear layer over patches in the reference, a convolution in timm.
    p = model.patch_size
    kernel = state[PATCHES].reshape(model.embed_dim, p, p, -1)
    state[PATCHES] = np.array(kernel.transpose(0, 3, 1, 2), order="C")
  return state


def from_torch(state_dict, model):
  """Converts a state dict as the package's `from_torch` does."""
  check(model)
  return renaming.from_torch(state_dict, model, names, to_torch)
