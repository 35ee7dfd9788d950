"""Mixup and CutMix: images (B, H, W, C) and soft targets (B, K) of a batch.

`partner` (B,) is a permutation: image i is mixed with image partner[i].
"""

import jax
import jax.numpy as jnp


def mixup(images, targets, partner, lam):
  """lam × own + (1 - lam) × partner, of images and targets (Zhang et al.,
  2018)."""
  own = jnp.full((1, *images.shape[1:3], 1), lam, images.dtype)
  return _combine(images, targets, partner, own)


def cutmix(images, targets, partner, box):
  """Puts the partner's pixels into box = (r0, c0, r1, c1), rows r0:r1 and
  columns c0:c1; the targets weigh by the pixels' shares (Yun et al., 2019)."""
  own = 1 - _box_mask(box, *images.shape[1:3])
  return _combine(images, targets, partner, own.astype(images.dtype))


def random_box(draws, height, width, lam):
  """A box whose sides are sqrt(1 - lam) of the image's, around a uniform
  centre (from two uniform draws), cut at the border: `rand_bbox` of the
  paper's code."""
  size = jnp.array([height, width])
  cut = jnp.floor(size * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
  centre = jnp.floor(draws * size).astype(jnp.int32)
  r0, c0 = jnp.clip(centre - cut, 0, size)
  r1, c1 = jnp.clip(centre + cut, 0, size)
  return r0, c0, r1, c1


def random_mix(
  key, images, targets, probability=0.5, mixup_alpha=1.0, cutmix_alpha=1.0
):
  """Mixes the whole batch with the given probability, by mixup or CutMix.

  Either is as likely; the alphas are those of the Beta(alpha, alpha) that lam
  comes from, and an alpha of 0 leaves that kind out. One partner, lam and box
  serve the whole batch, as in the paper's code.
  """
  if mixup_alpha <= 0 and cutmix_alpha <= 0:
    return images, targets
  partner_key, mixup_key, cutmix_key, key = jax.random.split(key, 4)
  draws = jax.random.uniform(key, (4,))
  count, height, width, _ = images.shape
  own = jnp.zeros((1, height, width, 1))
  if mixup_alpha > 0:
    own += _beta(mixup_key, mixup_alpha)
  if cutmix_alpha > 0:
    lam = _beta(cutmix_key, cutmix_alpha)
    box = random_box(draws[:2], height, width, lam)
    share = 0.5 if mixup_alpha > 0 else 0.0
    own = jnp.where(draws[2] < share, own, 1 - _box_mask(box, height, width))
  own = jnp.where(draws[3] < probability, own, 1.0).astype(images.dtype)
  partner = jax.random.permutation(partner_key, count)
  return _combine(images, targets, partner, own)


def _beta(key, alpha):
  """Beta(alpha, alpha); at 1 it is uniform, and the gamma sampler, which takes
  seconds to compile, is not needed."""
  if alpha == 1:
    return jax.random.uniform(key)
  return jax.random.beta(key, alpha, alpha)


def _combine(images, targets, partner, own):
  """Weighs pixels by own (1, H, W, 1), and targets by its mean."""
  lam = jnp.mean(own.astype(jnp.float32))
  images = own * images + (1 - own) * images[partner]
  return images, lam * targets + (1 - lam) * targets[partner]


def _box_mask(box, height, width):
  """(1, H, W, 1), true inside box = (r0, c0, r1, c1)."""
  r0, c0, r1, c1 = box
  row = jnp.arange(height)[None, :, None, None]
  column = jnp.arange(width)[None, None, :, None]
  return (row >= r0) & (row < r1) & (column >= c0) & (column < c1)
