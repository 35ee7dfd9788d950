"""The interface of all architectures, and the sizes that they share."""

import dataclasses
from numbers import Integral

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_ssl_jax.errors import UserError

LOCALITIES = ("", "spt", "lsa", "spt+lsa")


class Backbone(nn.Module):
  """Interface and sizes that all architectures share.

  An architecture defines `setup`, with its classifier as `head`;
  `encode_with_grid`: (images, keep) -> features (B, num_features) float32 and
  the last block's tokens (B, h, w, D); `num_features`; `drop_path_rates`.
  Images may have any size that the patch divides.
  """

  image_size: int = 32  # height and width in pixels that positions are for
  patch_size: int = 4  # height and width in pixels
  embed_dim: int = 192  # width D, in Swin of the first stage
  mlp_ratio: float = 2.0  # hidden width of an MLP over its input's
  num_classes: int = 0  # 0 has no classifier and returns features
  drop_path_rate: float = 0.0  # stochastic depth
  # Shifted patch tokenisation "spt", locality self-attention "lsa" (Lee et al.,
  # 2021), both as "spt+lsa", or neither as "".
  locality: str = ""
  dtype: jnp.dtype = jnp.float32  # of the body's arithmetic
  remat: bool = False  # activation checkpointing of each block

  def __call__(self, images, train=False, keep=None):
    """Images (B, H, W, 3), normalised -> logits (B, num_classes), float32.

    Without classes it returns the features.

    Args:
      images: (B, H, W, 3).
      train: apply drop path, drawn from the PRNG stream "drop_path".
      keep: (B, depth, 2) of `drop_path`, applied instead of drawn.
    """
    return self.classify(self.features(images, train, keep))

  def features(self, images, train=False, keep=None):
    """Images (B, H, W, 3) -> features (B, num_features), float32."""
    return self.encode(images, self.draw(images, train, keep))

  def logits_and_grid(self, images, train=False, keep=None):
    """As `__call__`, with the last block's tokens (B, h, w, D)."""
    x, grid = self.encode_with_grid(images, self.draw(images, train, keep))
    return self.classify(x), grid

  def encode(self, images, keep):
    """The features of `encode_with_grid`."""
    return self.encode_with_grid(images, keep)[0]

  def classify(self, features):
    return self.head(features) if self.num_classes else features

  def draw(self, images, train, keep):
    if keep is None and train and self.drop_path_rate:
      keep = drop_path(self, self.make_rng("drop_path"), (len(images),))
    return keep

  @property
  def side(self):
    """Patches along a side of an image of image_size."""
    return self.image_size // self.patch_size

  def has(self, part):
    """True if `locality` has "spt" or "lsa"."""
    return part in self.locality.split("+")

  def check(self):
    """Raises a UserError where sizes do not fit together."""
    check_integers(self)
    if self.embed_dim * self.mlp_ratio < 1:
      raise UserError(
        f"model.mlp_ratio={self.mlp_ratio} leaves an MLP without a hidden unit"
      )
    if self.locality not in LOCALITIES:
      raise UserError(
        f"model.locality={self.locality!r} must be one of"
        f" {', '.join(map(repr, LOCALITIES))}"
      )
    if self.image_size < self.patch_size or self.image_size % self.patch_size:
      raise UserError(
        f"model.image_size={self.image_size} is not a multiple of"
        f" model.patch_size={self.patch_size}"
      )


def drop_path(model, key, shape):
  """Draws keep-factors of stochastic depth (Huang et al., 2016).

  Drawn once for a whole batch, they do not depend on how it is split.

  Args:
    model: a `Backbone`.
    key: PRNG key.
    shape: of the views that are dropped independently, such as (B,) or (B, V).

  Returns:
    (*shape, depth, 2) float32, for the two branches of each block: 0 where
    dropped, 1 / (1 - rate) elsewhere. None if the model has no drop path.
  """
  if not model.drop_path_rate:
    return None
  keep = 1 - jnp.asarray(model.drop_path_rates, jnp.float32)
  keep = keep.reshape(*[1] * len(shape), -1, 1)
  draws = jax.random.uniform(key, (*shape, keep.shape[-2], 2))
  return jnp.where(draws < keep, 1 / keep, 0.0)


def by_block(keep, depth):
  """Keep-factors (B, depth, 2) or None -> (B, 2) or None for each block."""
  return [None] * depth if keep is None else jnp.unstack(keep, axis=1)


def check_integers(model):
  """Raises a UserError where a size must be positive integers and is not."""
  for field in dataclasses.fields(model):
    value, least = getattr(model, field.name), int(field.name != "num_classes")
    if field.type is int:
      numbers, expected = [value], f"a whole number of at least {least}"
    elif field.type == tuple[int, ...]:
      numbers = value if isinstance(value, tuple) and value else [None]
      expected = "whole numbers of at least 1, one per stage"
    else:
      continue
    if not all(isinstance(x, Integral) and x >= least for x in numbers):
      raise UserError(f"model.{field.name}={value!r} must be {expected}")


def check_heads(model, width, heads):
  """Raises a UserError where heads do not divide a width."""
  if width % heads:
    raise UserError(
      f"model.num_heads={model.num_heads}: {heads} heads do not divide a width"
      f" of {width} (model.embed_dim={model.embed_dim})"
    )
