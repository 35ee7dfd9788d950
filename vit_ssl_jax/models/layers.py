"""What the architectures share: patch embedding, transformer block, interface.

Parameters are float32. `dtype` is the type of the arithmetic; the statistics of
normalisation and the softmax stay float32 whatever it is.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import locality, old as kernels, sizes

EPSILON = 1e-6  # of layer norms
LayerNorm = functools.partial(nn.LayerNorm, epsilon=EPSILON)


def uniform_fan_in(fan_in):
  """PyTorch's default: uniform in ±1/√fan_in, for kernels and for biases."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Dense(nn.Module):
  """`nn.Dense` with a normal initialiser, by `kernels.dense`.

  Attributes:
    features: width F.
    use_bias: whether there is a bias.
    dtype: type of the arithmetic.
  """

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, part=None, split_bias=False):
    """(..., D) -> (..., F).

    Args:
      x: (..., D).
      part: a slice of the features, where these alone are computed.
      split_bias: whether to return the product and the bias, not their sum.
    """
    shape = x.shape[-1], self.features
    kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
    zeros = nn.initializers.zeros
    bias = self.param("bias", zeros, shape[1:]) if self.use_bias else None
    if part is not None:
      kernel, bias = kernel[:, part], None if bias is None else bias[part]
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    if split_bias:
      return kernels.dense(x, kernel), bias
    return kernels.dense(x, kernel, bias)


class PatchEmbed(nn.Module):
  """Projects each patch of an image to a token.

  Attributes:
    patch_size: pixels a side of a patch.
    features: width D.
    shifted: shifted patch tokenisation (Lee et al., 2021).
    norm: whether tokens are normalised.
    init: initialiser of the kernel, with biases of 0; None is PyTorch's default
      of a convolution, uniform by the fan-in, for both.
    dtype: type of the arithmetic.
  """

  patch_size: int
  features: int
  shifted: bool = False
  norm: bool = False
  init: nn.initializers.Initializer | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images):
    """Images (B, H, W, C) -> tokens (B, H/p, W/p, D).

    Raises:
      UserError: the patch does not divide the images.
    """
    (H, W), p = images.shape[1:3], self.patch_size
    if H % p or W % p or not H or not W:
      raise UserError(
        f"images of {H} x {W} pixels cannot be cut into patches of"
        f" {p} x {p} (model.patch_size={p})"
      )
    if self.shifted:
      images = locality.with_shifted_copies(images, p // 2)
      images = locality.cut(images, p)
      images = LayerNorm(dtype=self.dtype, name="input_norm")(images)
      p = 1  # each patch is a pixel by now
    uniform = uniform_fan_in(p * p * images.shape[-1])
    x = nn.Conv(
      self.features,
      (p, p),
      strides=(p, p),
      padding="VALID",
      dtype=self.dtype,
      kernel_init=self.init or uniform,
      bias_init=nn.initializers.zeros if self.init else uniform,
      name="proj",
    )(images)
    return LayerNorm(dtype=self.dtype, name="norm")(x) if self.norm else x


class Mlp(nn.Module):
  """Two linear layers with the exact GELU in between."""

  hidden_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """(..., D) -> (..., D)."""
    h = Dense(self.hidden_dim, dtype=self.dtype, name="fc1")(x)
    h = kernels.gelu(h)
    return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)


class Block(nn.Module):
  """Pre-norm transformer block (Dosovitskiy et al., 2021, figure 1).

  Attributes:
    attention: makes the attention module, given its fast, dtype and name.
    mlp_ratio: hidden width of the MLP over D.
    dtype: type of the arithmetic.
    fast: whether the device's kernels compute it.
  """

  attention: Callable[..., nn.Module]
  mlp_ratio: float
  dtype: jnp.dtype = jnp.float32
  fast: bool = True

  @nn.compact
  def __call__(self, x, masks=None, weights_only=False, first_only=False):
    """Tokens (B, ..., D) -> (B, ..., D), or the attention's softmax alone.

    Args:
      x: (B, ..., D).
      masks: (B, 2) drop path of the two branches, or None.
      weights_only: whether to return the softmax.
      first_only: whether to return the first token alone, (B, 1, D).
    """
    attention = self.attention(fast=self.fast, dtype=self.dtype, name="attn")
    add_norm = functools.partial(AddNorm, self.dtype, self.fast)
    x, y = add_norm(name="norm1")(x)
    if weights_only:
      return attention(y, weights_only=True)
    if first_only:
      x, attention = x[:, :1], functools.partial(attention, first_only=True)
    x, y = add_norm(name="norm2")(x, attention(y), masks_of(masks, 0))
    y = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")(y)
    return kernels.add(x, y, masks_of(masks, 1))


class AddNorm(nn.Module):
  """A residual sum and its layer norm, by `kernels.add_norm`.

  Attributes:
    dtype: of the norm.
    fast: whether the device's kernel computes it.
  """

  dtype: jnp.dtype = jnp.float32
  fast: bool = True

  @nn.compact
  def __call__(self, x, y=None, mask=None):
    """x and a branch y of it (B, ..., D), mask (B,) -> x + mask y, its norm.

    Without y the sum is x; without a mask y is not scaled.
    """
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    return kernels.add_norm(
      x, y, mask, scale, bias, EPSILON, self.dtype, self.fast
    )


def masks_of(masks, i):
  """The masks of block or of branch i, masks[:, i]; None stays None."""
  return None if masks is None else masks[:, i]


def drop_path_masks(key, rates, shape):
  """Which residual branches to drop (stochastic depth, Huang et al., 2016).

  Args:
    key: PRNG key.
    rates: (depth,) the probability of dropping, by block.
    shape: of the views that are dropped independently, such as (B,) or (B, V).

  Returns:
    (*shape, depth, 2) float32, for a block's two branches: 0 where dropped,
    1 / (1 - rate) elsewhere.
  """
  keep = 1 - jnp.asarray(rates, jnp.float32)
  keep = keep.reshape(*[1] * len(shape), -1, 1)
  draws = jax.random.uniform(key, (*shape, len(rates), 2))
  return jnp.where(draws < keep, 1 / keep, 0.0)


class Backbone(nn.Module):
  """The interface of all architectures, and the sizes that they share.

  An architecture defines `setup`, with its classifier as `head`;
  `encode_with_grid`: (images, masks) -> features (B, num_features) float32, and
  the tokens (B, h, w, D) of the last block before the last normalisation;
  `attention`; `num_features`, `num_blocks` and `drop_path_rates`.

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
      pass instead of being kept (activation checkpointing, Chen et al., 2016).
    fast_attention: whether attention, and a GPU's layer norms, are the device's
      kernels or the plain forms.
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
  fast_attention: bool = True

  def __call__(self, images, train=False, masks=None):
    """Images (B, H, W, 3), normalised -> logits (B, num_classes), float32.

    Without classes the features take their place.

    Args:
      images: (B, H, W, 3).
      train: whether drop path is active.
      masks: (B, depth, 2) of `drop_path_masks`; None draws them from the PRNG
        stream "drop_path" where drop path is active.
    """
    return self.classify(self.features(images, train, masks))

  def features(self, images, train=False, masks=None):
    """Images (B, H, W, 3) -> features (B, num_features), float32."""
    return self.encode(images, self.draw(images, train, masks))

  def logits_and_grid(self, images, train=False, masks=None):
    """As `__call__`, with the last block's tokens (B, h, w, D) as well."""
    x, grid = self.encode_with_grid(images, self.draw(images, train, masks))
    return self.classify(x), grid

  def encode(self, images, masks):
    """The features of `encode_with_grid`, by a cheaper way if there is one."""
    return self.encode_with_grid(images, masks)[0]

  def classify(self, features):
    """Features -> logits; without classes the features."""
    return self.head(features) if self.num_classes else features

  def draw(self, images, train, masks):
    """The masks given, or fresh ones where drop path is active."""
    if masks is None and train and self.drop_path_rate:
      key = self.make_rng("drop_path")
      masks = drop_path_masks(key, self.drop_path_rates, (len(images),))
    return masks

  @property
  def side(self):
    """Patches a side of an image of image_size."""
    return self.image_size // self.patch_size

  def has(self, part):
    """Whether locality has "spt" or "lsa"."""
    return part in self.locality.split("+")

  def index(self, block):
    """A block's number from 0, of one that may count from the end.

    Raises:
      UserError: there is no such block.
    """
    if not -self.num_blocks <= block < self.num_blocks:
      raise UserError(
        f"there is no block {block}: the model has {self.num_blocks}"
      )
    return block % self.num_blocks

  def check(self):
    """Raises a UserError where sizes do not fit together."""
    sizes.check(self)


def classifier(num_classes):
  """The last layer, from features to logits, in float32."""
  # Accelerators would multiply float32 in fewer bits if not told.
  return nn.Dense(
    num_classes,
    kernel_init=nn.initializers.normal(0.02),
    precision=jax.lax.Precision.HIGHEST,
  )
