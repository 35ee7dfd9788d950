"""Mixup and CutMix: images (B, H, W, C) and soft targets (B, K) of a batch.

`partner` (B,) is a permutation: image i is mixed with image partner[i].
"""

import jax
import jax.numpy as jnp


def mixup(images, targets, partner, lam):
  """Blends images and targets, lam : 1 - lam (Zhang et al., 2018)."""
  mixed = lam * images + (1 - lam) * images[partner]
  return mixed, lam * targets + (1 - lam) * targets[partner]


def cutmix(images, targets, partner, box):
  """Pastes the partner's box = (r0, c0, r1, c1) (Yun et al., 2019).

  Targets are weighted by the shares of pixels.
  """
  r0, c0, r1, c1 = box
  row = jnp.arange(images.shape[1])[None, :, None, None]
  column = jnp.arange(images.shape[2])[None, None, :, None]
  inside = (row >= r0) & (row < r1) & (column >= c0) & (column < c1)
  lam = 1 - jnp.mean(inside, dtype=jnp.float32)
  mixed = jnp.where(inside, images[partner], images)
  return mixed, lam * targets + (1 - lam) * targets[partner]


def random_box(key, height, width, lam):
  """CutMix's box (r0, c0, r1, c1): `rand_bbox` of the paper's code."""
  size = jnp.array([height, width])
  cut = jnp.floor(size * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
  centre = jax.random.randint(key, (2,), 0, size)
  r0, c0 = jnp.clip(centre - cut, 0, size)
  r1, c1 = jnp.clip(centre + cut, 0, size)
  return r0, c0, r1, c1


def random_mix(key, images, targets, probability, mixup_alpha, cutmix_alpha):
  """Applies mixup or CutMix, at even odds, with the given probability.

  lam is one draw for the batch, from Beta(alpha, alpha).
  """
  keys = jax.random.split(key, 6)
  partner = jax.random.permutation(keys[0], images.shape[0])
  lam = _beta(keys[1], mixup_alpha)
  box = random_box(
    keys[2], *images.shape[1:3], lam=_beta(keys[3], cutmix_alpha)
  )
  mixed = _either(
    jax.random.bernoulli(keys[4]),
    mixup(images, targets, partner, lam),
    cutmix(images, targets, partner, box),
  )
  apply = jax.random.bernoulli(keys[5], probability)
  return _either(apply, mixed, (images, targets))


def _either(condition, yes, no):
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)


def _beta(key, alpha):
  if alpha == 1:  # without the gamma sampler, which takes seconds to compile
    return jax.random.uniform(key)
  return jax.random.beta(key, alpha, alpha)
