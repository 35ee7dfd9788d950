"""What all architectures share: their sizes and their methods."""

import dataclasses
import numbers

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.cli import UserError
from vit_ssl_jax.models import layers, patches

LOCALITIES = ("", "spt", "lsa", "spt+lsa")


class Backbone(nn.Module):
  """An architecture: images to features, and to logits if it has classes.

  An architecture defines `num_features`, `num_blocks`, `drop_path_rates` and
  `encode`.

  Attributes:
    image_size: pixels a side that the model is laid out for; it takes images
      of any size that the patch divides.
    patch_size: pixels a side of a patch.
    embed_dim: width D, of the first stage if there are several.
    mlp_ratio: hidden width of an MLP over its input's.
    num_classes: size of the classifier; 0 has none and returns features.
    drop_path_rate: stochastic depth.
    locality: "spt" for shifted patch tokenisation, "lsa" for locality
      self-attention, "spt+lsa" for both (Lee et al., 2021); "" for neither.
    dtype: type of the body's arithmetic.
    remat: whether what is inside a block is computed again in the backward
      pass instead of being kept (rematerialisation, Chen et al., 2016).
  """

  image_size: int = 32
  patch_size: int = 4
  embed_dim: int = 192
  mlp_ratio: float = 2.0
  num_classes: int = 0
  drop_path_rate: float = 0.0
  locality: str = ""
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  def __call__(self, images, train=False):
    """Images (B, H, W, 3), normalised -> logits (B, num_classes), float32.

    With train=True and a drop path rate above 0 it needs the PRNG stream
    "drop_path".
    """
    masks = self.drop_path((len(images), 1), train)
    return self.logits_and_grid(images, masks, whole=False)[0]

  @nn.compact
  def logits_and_grid(self, images, masks=None, whole=True):
    """Images (B, H, W, 3) -> logits (B, num_classes), patches' tokens.

    `masks` are of `drop_path`, for one view of each image, or None. The tokens
    (B, h, w, D) are those of the last block, before the last normalisation, and
    without `whole` they may be None, which is faster. Without classes the
    features take the place of logits.
    """
    x, grids, _ = self.encode([images[:, None]], by_block(masks), whole=whole)
    x, grid = x[:, 0], grids and grids[0][:, 0]
    if not self.num_classes:
      return x, grid
    # Accelerators would multiply float32 in fewer bits if not told.
    head = nn.Dense(
      self.num_classes,
      precision=jax.lax.Precision.HIGHEST,
      kernel_init=nn.initializers.normal(0.02),
      name="head",
    )
    return head(x), grid

  def features(self, images, train=False):
    """Images (B, H, W, 3) -> features (B, num_features), float32."""
    masks = self.drop_path((len(images), 1), train)
    return self.features_of_views([images[:, None]], masks)[:, 0]

  def features_of_views(self, groups, masks=None):
    """Features of several views of each image, in one pass.

    Args:
      groups: arrays (B, V, H, W, 3), each of another image size.
      masks: of `drop_path`, for all views, or None.

    Returns:
      (B, sum of V, num_features) float32.
    """
    return self.encode(groups, by_block(masks), whole=False)[0]

  def attention(self, images, block=-1):
    """Images (B, H, W, 3) -> (B, heads, N, M), the attention of one block.

    Row n is how token n attends to tokens m. `block` counts from 0 over all
    blocks, or from the end if negative.

    Raises:
      UserError: there is no such block.
    """
    if not -self.num_blocks <= block < self.num_blocks:
      raise UserError(
        f"there is no block {block}: the model has {self.num_blocks}"
      )
    every = self.encode([images[:, None]], None, return_attention=True)[2]
    return every[block]

  def encode(self, groups, masks, return_attention=False, whole=True):
    """Views of each image to features.

    Args:
      groups: as in `features_of_views`.
      masks: (depth, 2, B, V) drop path, or None.
      return_attention: whether to return the first group's attention.
      whole: whether more is wanted than features, which may be found faster.

    Returns:
      Features (B, sum of V, num_features), float32; for each group the
      patches' tokens (B, V, h, w, D) after the last block, or None; a list of
      every block's attention, or None.
    """
    raise NotImplementedError

  @property
  def side(self):
    """Patches a side of an image of image_size."""
    return self.image_size // self.patch_size

  def grid(self, images):
    """Patches along the height and the width of images (..., H, W, C).

    Raises:
      UserError: the patch does not divide the images.
    """
    H, W = images.shape[-3:-1]
    p = self.patch_size
    if H % p or W % p or not H or not W:
      raise UserError(
        f"images of {H} x {W} pixels cannot be cut into patches of"
        f" {p} x {p} (model.patch_size={p})"
      )
    return H // p, W // p

  def has(self, part):
    """Whether locality has "spt" or "lsa"."""
    return part in self.locality.split("+")

  def embed(self, groups, positions, init=None):
    """Views (B, V, H, W, C) -> tokens (B, V, N, D) with their positions.

    Args:
      groups: as in `features_of_views`.
      positions: (1, side², D) position embeddings, resized where a view is of
        another size (the paper, section 3.1).
      init: as in `PatchEmbed`.
    """
    project = patches.PatchEmbed(
      self.patch_size, self.embed_dim, init, self.has("spt"),
      dtype=self.dtype, name="patch_embed",
    )  # fmt: skip
    for images in groups:
      resized = patches.resize_position_embedding(
        positions, (self.side, self.side), self.grid(images)
      )
      x = project(images.reshape(-1, *images.shape[2:]))
      x = x.reshape(*images.shape[:2], *x.shape[1:])
      yield x + resized[None].astype(x.dtype)

  def drop_path(self, batch_and_views, train):
    """Masks (B, depth, 2, V) of all blocks, or None where nothing drops.

    They are those of `layers.drop_path_masks`, from the PRNG stream
    "drop_path", with the batch first, so that they can be parted with it.

    Args:
      batch_and_views: (B, V), V being the views of all sizes.
      train: whether drop path is active.
    """
    if not train or not self.drop_path_rate:
      return None
    key = self.make_rng("drop_path")
    masks = layers.drop_path_masks(key, self.drop_path_rates, batch_and_views)
    return jnp.moveaxis(masks, 2, 0)

  def linear_drop_path(self, depth):
    """Rates (depth,) on a line from 0 for the first block to the full rate."""
    return np.linspace(0, self.drop_path_rate, depth)

  def check(self):
    """Raises a UserError where sizes do not fit together."""
    for field in dataclasses.fields(self):
      check_whole(field.name, field.type, getattr(self, field.name))
    if not self.embed_dim * self.mlp_ratio >= 1:
      raise UserError(
        f"model.mlp_ratio={self.mlp_ratio} leaves an MLP without a hidden unit"
      )
    if self.locality not in LOCALITIES:
      known = ", ".join(map(repr, LOCALITIES))
      raise UserError(
        f"model.locality={self.locality!r} is unknown: possible are {known}"
      )
    if self.image_size < self.patch_size:
      raise UserError(
        f"images of {self.image_size} pixels are smaller than a patch of"
        f" {self.patch_size}: model.patch_size can be at most {self.image_size}"
      )
    if self.image_size % self.patch_size:
      raise UserError(
        f"model.image_size={self.image_size} is not a multiple of"
        f" model.patch_size={self.patch_size}"
      )

  def check_heads(self, width, heads):
    """Raises a UserError where heads do not divide a width."""
    if width % heads:
      raise UserError(
        f"model.num_heads={self.num_heads}: {heads} heads do not divide a width"
        f" of {width} (model.embed_dim={self.embed_dim})"
      )


def by_block(masks):
  """Masks (B, depth, 2, V) -> (depth, 2, B, V); None stays None."""
  return None if masks is None else jnp.moveaxis(masks, 0, 2)


def check_whole(name, kind, value):
  """Raises a UserError where a size is not the whole number it has to be."""
  if kind not in (int, tuple[int, ...]):
    return
  least = int(name != "num_classes")

  def is_whole(x):
    number = isinstance(x, numbers.Integral) and not isinstance(x, bool)
    return number and x >= least

  if kind is int:
    fits, what = is_whole(value), "a whole number"
  else:
    fits = isinstance(value, tuple) and value and all(map(is_whole, value))
    what = "whole numbers, one for each stage,"
  if not fits:
    raise UserError(f"model.{name}={value} has to be {what} at least {least}")
