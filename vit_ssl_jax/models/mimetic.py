"""Mimetic initialisation of ViT (Trockman and Kolter, 2023, arXiv 2305.09828).

Attention begins as it is found in trained transformers: W_q W_k^T near a
multiple of the identity, so that a token attends to tokens like itself, and
W_v W_proj near a negative one. Positions are sines and cosines. The scales are
those of two that were tried that did better; docs/own_images.md has how much.
"""

import jax
import jax.numpy as jnp

# Of the noise and of the identity, in W_q W_k^T and in W_v W_proj.
QUERY_KEY = 0.2
VALUE_PROJECTION = 0.4
POSITIONS = 0.3


def mimetic(params, key, num_heads):
  """Fresh parameters of a `vit.VisionTransformer`, made mimetic.

  Args:
    params: of `models.init`.
    key: PRNG key.
    num_heads: of each block.
  """
  params = dict(params)
  names = sorted(name for name in params if name.startswith("blocks_"))
  for name, block_key in zip(
    names, jax.random.split(key, len(names)), strict=True
  ):
    attention = params[name]["attn"]
    made = attention_kernels(
      block_key, attention["proj"]["kernel"].shape[0], num_heads
    )
    replaced = {
      part: attention[part] | {"kernel": kernel}
      for part, kernel in made.items()
    }
    params[name] = params[name] | {"attn": attention | replaced}
  D = params["pos_embed"].shape[-1]
  side = round((params["pos_embed"].shape[1] - 1) ** 0.5)
  waves = POSITIONS * sines(side, D)[None]
  params["pos_embed"] = params["pos_embed"].at[:, 1:].set(waves)
  return params


def attention_kernels(key, D, num_heads):
  """Kernels "qkv" (D, 3 · D) and "proj" (D, D) of a block's attention."""
  *head_keys, last_key = jax.random.split(key, num_heads + 1)
  width = D // num_heads
  made = [
    factors(noisy_identity(k, D, QUERY_KEY, QUERY_KEY), width)
    for k in head_keys
  ]
  queries, keys = (jnp.concatenate(x, 1) for x in zip(*made, strict=True))
  mixing = noisy_identity(last_key, D, VALUE_PROJECTION, -VALUE_PROJECTION)
  values, projection = factors(mixing, D)
  return {
    "qkv": jnp.concatenate([queries, keys, values], 1),
    "proj": projection.T,
  }


def noisy_identity(key, D, noise, identity):
  """noise · Z + identity · I, (D, D), with Z of variance 1 / D."""
  drawn = jax.random.normal(key, (D, D)) / D**0.5
  return noise * drawn + identity * jnp.eye(D)


def factors(matrix, rank):
  """Matrices A and B, (D, rank), with A B^T nearest to a matrix (D, D)."""
  u, s, vt = jnp.linalg.svd(matrix)
  root = jnp.sqrt(s[:rank])[None]
  return u[:, :rank] * root, vt[:rank].T * root


def sines(side, D):
  """Sines and cosines of rows and columns, (side², D), filled up with 0."""
  rates = 10_000.0 ** -(jnp.arange(D // 4) / (D // 4))
  rows, columns = jnp.divmod(jnp.arange(side**2), side)
  found = [
    wave(place[:, None] * rates[None])
    for place in (rows, columns)
    for wave in (jnp.sin, jnp.cos)
  ]
  found = jnp.concatenate(found, 1)
  return jnp.pad(found, [(0, 0), (0, D - found.shape[1])])
