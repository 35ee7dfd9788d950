"""From images to tokens: patches, their projection and their positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import layers


class PatchEmbed(nn.Module):
  """Projects the patches of images.

  Attributes:
    patch_size: pixels a side of a patch.
    features: width D.
    init: initialiser of the kernel; None is PyTorch's default for a
      convolution, uniform by the fan-in, for the bias as well.
    shifted: shifted patch tokenisation (Lee et al., 2021): each patch is seen
      together with four shifted copies of the image, and normalised before it
      is projected.
    norm: whether tokens are normalised.
    dtype: type of the arithmetic.
  """

  patch_size: int
  features: int
  init: nn.initializers.Initializer | None = None
  shifted: bool = False
  norm: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images):
    """Images (B, H, W, C) -> tokens (B, H/p · W/p, D), row by row."""
    if self.shifted:
      images = with_shifted_copies(images, self.patch_size // 2)
    x = patches(images, self.patch_size)
    if self.shifted:
      x = layers.LayerNorm(self.dtype, name="input_norm")(x)
    uniform = layers.uniform_fan_in(x.shape[-1])
    x = nn.Dense(
      self.features,
      dtype=self.dtype,
      kernel_init=self.init or uniform,
      bias_init=nn.initializers.zeros if self.init else uniform,
      name="proj",
    )(x)
    return layers.LayerNorm(self.dtype, name="norm")(x) if self.norm else x


def with_shifted_copies(images, pixels):
  """Puts four diagonally shifted copies behind the channels of images.

  What is shifted in from outside is zero (Lee et al., 2021).

  Args:
    images: (B, H, W, C).
    pixels: how far, along both axes.

  Returns:
    (B, H, W, 5 · C): the images, then those moved down and right, down and
    left, up and right, up and left.
  """
  _, H, W, _ = images.shape
  s = pixels
  padded = jnp.pad(images, ((0, 0), (s, s), (s, s), (0, 0)))
  moved = [
    padded[:, top : top + H, left : left + W]
    for top in (0, 2 * s)
    for left in (0, 2 * s)
  ]
  return jnp.concatenate([images, *moved], -1)


def patches(images, patch_size):
  """Cuts images (B, H, W, C) into (B, H/p · W/p, p·p·C), row by row."""
  B, H, W, C = images.shape
  p = patch_size
  x = images.reshape(B, H // p, p, W // p, p, C)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, p * p * C)


def cubic_resize_matrix(size, new_size, extra):
  """The weights with which a row of positions is resized.

  They are those of PyTorch's bicubic interpolation (a = -0.75, half-pixel
  centres, borders repeated, no antialiasing) under the scale factor
  (new_size + extra) / size.

  Args:
    size: length of the given row.
    new_size: length wanted.
    extra: 0 where the factor is the sizes' ratio.

  Returns:
    (new_size, size) float32 NumPy array.
  """
  a = -0.75
  position = (np.arange(new_size) + 0.5) * size / (new_size + extra) - 0.5
  first = np.floor(position).astype(int)
  matrix = np.zeros((new_size, size))
  for tap in range(-1, 3):
    d = np.abs(position - (first + tap))
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    column = np.clip(first + tap, 0, size - 1)
    np.add.at(
      matrix, (np.arange(new_size), column), np.where(d <= 1, near, far)
    )
  return matrix.astype(np.float32)


def resize_position_embedding(embedding, grid, new_grid):
  """Resizes position embeddings (1, h·w, D) from one grid (h, w) to another.

  "Dynamic position embeddings" of the paper, section 3.1, whose code adds 0.1
  to the size wanted. Returns (1, h'·w', D), unchanged where the grids are the
  same.
  """
  if grid == new_grid:
    return embedding
  rows = cubic_resize_matrix(grid[0], new_grid[0], 0.1)
  columns = cubic_resize_matrix(grid[1], new_grid[1], 0.1)
  D = embedding.shape[-1]
  return jnp.einsum(
    "yh,xw,hwd->yxd",
    rows,
    columns,
    embedding.reshape(*grid, D),
    precision=jax.lax.Precision.HIGHEST,
  ).reshape(1, -1, D)
