"""The table of architectures: recipes, interop and messages read it."""

import dataclasses

import flax.linen as nn

from vit_ssl_jax.models.cait import CaiT
from vit_ssl_jax.models.swin import SwinTransformer
from vit_ssl_jax.models.vit import VisionTransformer


@dataclasses.dataclass(frozen=True)
class Architecture:
  """An architecture's module, its sizes in recipes, its names elsewhere.

  Attributes:
    module: the Flax module, whose attributes are the sizes.
    sizes: the paper's (its code's build_model.py), beside patch_size.
    small: sizes that a few CPU cores train in minutes, for custom data sets.
    digits: what differs from `sizes` for digits of 16 pixels.
    patch_sizes: the paper's patch sizes, by image size.
    patches: patches across an image of a custom data set.
    small_patches: the same of a `small` model.
    mae: whether it can be pretrained as a masked autoencoder.
    drloc_weight: weight of dense relative localisation; None if unsupported.
    remat: whether blocks are recomputed in the backward pass on accelerators.
    timm: timm's model whose arguments are changed to ours.
    transformers: transformers' prefix, such as "ViT"; "" if it has none.
  """

  module: type[nn.Module]
  sizes: dict
  small: dict
  digits: dict
  patch_sizes: dict
  patches: int
  small_patches: int
  timm: str
  transformers: str = ""
  mae: bool = False
  remat: bool = False
  drloc_weight: float | None = None


ARCHITECTURES = {
  "vit": Architecture(
    VisionTransformer,
    sizes={"embed_dim": 192, "depth": 9, "num_heads": 12},
    small={"embed_dim": 96, "depth": 4, "num_heads": 4},
    digits={"embed_dim": 64, "depth": 3, "num_heads": 4},
    patch_sizes={16: 4, 32: 4, 64: 8, 224: 16},
    patches=8,
    small_patches=8,
    timm="vit_tiny_patch16_224",
    transformers="ViT",
    mae=True,
    drloc_weight=0.1,  # its authors' for T2T and CvT; they give none for ViT
  ),
  "swin": Architecture(
    SwinTransformer,
    sizes={
      "embed_dim": 96,  # of the first stage; each further stage doubles it
      "depths": (2, 6, 4),
      "num_heads": (3, 6, 12),
      "window_size": 4,
    },
    small={"embed_dim": 48, "depths": (2, 2), "num_heads": (2, 4)},
    digits={"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
    patch_sizes={16: 2, 32: 2, 64: 4, 224: 4},
    patches=16,
    small_patches=8,
    timm="swin_tiny_patch4_window7_224",
    transformers="Swin",
    drloc_weight=0.5,  # its authors'
  ),
  "cait": Architecture(
    CaiT,
    sizes={
      "embed_dim": 192,
      "depth": 24,
      "depth_token_only": 2,
      "num_heads": 4,
      "layer_scale_init": 1e-5,
    },
    small={"embed_dim": 96, "depth": 4, "num_heads": 4},
    digits={"embed_dim": 64, "depth": 3, "layer_scale_init": 0.1},
    patch_sizes={16: 4, 32: 4, 64: 8, 224: 16},
    patches=8,
    small_patches=4,
    # An accelerator writes out and reads what the scan over blocks keeps: by
    # its compiler a TPU v5e needs 61.5 ms and 5.5 GB for a fine-tuning step
    # without this, 50.5 ms and 0.7 GB with it.
    remat=True,
    timm="cait_xxs24_224",
  ),
}


def name_of(model):
  """The key in `ARCHITECTURES` of a model."""
  return next(k for k, x in ARCHITECTURES.items() if type(model) is x.module)


def those_with(attribute):
  """The names of architectures where an attribute is set, joined by "and"."""
  names = [k for k, x in ARCHITECTURES.items() if getattr(x, attribute)]
  return " and ".join(names)
