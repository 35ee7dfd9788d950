"""Shifted patch tokenisation and locality self-attention, done by hand.

Everything here is computed a second time in NumPy, one image and one token at
a time, from the description in Lee, Lee and Song (2021, arXiv 2112.13492).
"""

import functools
import math

import jax
import numpy as np
import pytest

from vit_ssl_jax import models
from vit_ssl_jax.models import cait, swin


def randomized(params, seed=0):
  """Parameters of order 1, so that no part of a model hides behind another."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: (0.5 * rng.standard_normal(x.shape)).astype(np.float32), params
  )


def run(module, *inputs):
  """A module on random parameters: the parameters and its output."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  params = randomized(shapes)
  return params, jax.jit(module.apply)({"params": params}, *inputs)


def dense(x, p):
  kernel = p["kernel"].reshape(-1, p["kernel"].shape[-1])  # or a convolution
  return x @ kernel + p.get("bias", 0)


def layer_norm(x, p):
  variance = ((x - x.mean()) ** 2).mean()
  return (x - x.mean()) / math.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
  return np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x])


def pixel(image, row, column):
  """A pixel (C,), zero outside of the image."""
  H, W, C = image.shape
  inside = 0 <= row < H and 0 <= column < W
  return image[row, column] if inside else np.zeros(C)


def shifted_tokens(image, patch, by, norm, projection, transposed=False):
  """Shifted patch tokenisation of an image (H, W, C), one token at a time."""
  H, W, _ = image.shape
  moves = [(0, 0), (by, by), (by, -by), (-by, by), (-by, -by)]
  if transposed:
    moves = [move[::-1] for move in moves]
  tokens = []
  for top in range(0, H, patch):
    for left in range(0, W, patch):
      values = [
        pixel(image, row - down, column - right)
        for row in range(top, top + patch)
        for column in range(left, left + patch)
        for down, right in moves
      ]
      tokens.append(dense(layer_norm(np.concatenate(values), norm), projection))
  return np.array(tokens)


def softmax(scores):
  weights = np.exp(scores - max(scores))
  return weights / weights.sum()


def local_attention(x, heads, p, bias=lambda head, n, m: 0.0):
  """Locality self-attention of tokens (N, D), one head and token at a time.

  `bias` gives what is added to the score of token n for token m; None where n
  does not see m.
  """
  N, D = x.shape
  d = D // heads
  query, key, value = np.split(dense(x, p["qkv"]), 3, axis=1)
  out = np.zeros((N, D))
  for head in range(heads):
    part = slice(head * d, (head + 1) * d)
    for n in range(N):
      seen = [m for m in range(N) if m != n and bias(head, n, m) is not None]
      scores = [
        query[n, part] @ key[m, part] * p["inverse_temperature"][head]
        + bias(head, n, m)
        for m in seen
      ]
      out[n, part] = softmax(np.array(scores)) @ value[seen, part]
  return dense(out, p["proj"])


def images(count, side, channels=3):
  shape = (count, side, side, channels)
  return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def close(ours, expected):
  np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-4)


def test_vit_with_both():
  """A whole SL-ViT, from pixels to logits."""
  model = models.build(
    "vit", image_size=8, patch_size=4, embed_dim=6, depth=2, num_heads=2,
    num_classes=3, locality="spt+lsa",
  )  # fmt: skip
  batch = images(2, 8)
  params, logits = run(model, batch)
  for image, expected in zip(batch, logits, strict=True):
    embed = params["patch_embed"]
    x = shifted_tokens(image, 4, 2, embed["input_norm"], embed["proj"])
    x = np.concatenate([params["cls_token"][0], x]) + params["pos_embed"][0]
    for i in range(2):
      p = params[f"blocks_{i}"]
      y = np.array([layer_norm(token, p["norm1"]) for token in x])
      x = x + local_attention(y, 2, p["attn"])
      y = np.array([layer_norm(token, p["norm2"]) for token in x])
      hidden = [gelu(dense(token, p["mlp"]["fc1"])) for token in y]
      x = x + dense(np.array(hidden), p["mlp"]["fc2"])
    close(expected, dense(layer_norm(x[0], params["norm"]), params["head"]))


@pytest.mark.parametrize("shift", [0, 2])
def test_window_attention_of_swin(shift):
  """8 x 8 tokens and 4 x 4, in windows of 4 x 4."""
  heads, width, window = 2, 4, 4
  module = swin.WindowAttention(heads, window, shift, local=True)
  params, _ = run(module, images(1, 8, width))
  table = params["relative_position_bias_table"].reshape(7, 7, heads)

  def bias(side, head, n, m):
    a, b = np.array(divmod(n, side)), np.array(divmod(m, side))
    # After the roll tokens of one window that came around the edge are apart
    # from those that did not.
    place, other = (a - shift) % side, (b - shift) % side
    if any(place // window != other // window):
      return None
    if any((a < shift) != (b < shift)):
      return None
    down, right = place - other + window - 1
    return table[down, right, head]

  for side in (8, 4):
    tokens = images(1, side, width)
    ours = jax.jit(module.apply)({"params": params}, tokens)
    expected = local_attention(
      tokens.reshape(-1, width), heads, params, functools.partial(bias, side)
    )
    close(ours.reshape(-1, width), expected)


def test_merging_of_swin():
  batch = images(2, 4, 2)
  params, ours = run(swin.PatchMerging(shifted=True), batch)
  assert ours.shape == (2, 2, 2, 4)
  for image, merged in zip(batch, ours, strict=True):
    # Columns run slower than rows in a merged token: transposed, that is the
    # order of patches.
    expected = shifted_tokens(
      image.transpose(1, 0, 2), 2, 1, params["norm"], params["reduction"], True
    )
    expected = expected.reshape(2, 2, -1).transpose(1, 0, 2).reshape(4, -1)
    close(merged.reshape(4, -1), expected)


def test_talking_heads_of_cait():
  heads, N, D = 2, 4, 6
  module = cait.TalkingHeadsAttention(heads, local=True)
  x = np.random.default_rng(3).standard_normal((1, N, D)).astype(np.float32)
  params, ours = run(module, x)
  _, state = module.apply({"params": params}, x, mutable="intermediates")
  (weights,) = state["intermediates"]["attention"]
  query, key, value = np.split(dense(x[0], params["qkv"]), 3, axis=1)
  d = D // heads
  before, after = params["proj_l"], params["proj_w"]
  out = np.zeros((N, D))
  for n in range(N):
    scores = [
      [
        query[n, h * d : h * d + d] @ key[m, h * d : h * d + d]
        * params["inverse_temperature"][h]
        for h in range(heads)
      ]
      for m in range(N)
    ]  # fmt: skip
    mixed = np.array([dense(np.array(s), before) for s in scores])
    mixed[n] = -np.inf  # no token attends to itself
    soft = np.array([softmax(mixed[:, h]) for h in range(heads)])
    close(weights[0, :, n], soft)
    again = np.array([dense(soft[:, m], after) for m in range(N)])
    for h in range(heads):
      part = slice(h * d, h * d + d)
      out[n, part] = again[:, h] @ value[:, part]
  close(ours[0], dense(out, params["proj"]))


def test_class_attention_learns_its_temperature_and_masks_nothing():
  heads, N, D = 2, 3, 4
  module = cait.ClassAttention(heads, local=True)
  rng = np.random.default_rng(4)
  both = rng.standard_normal((1, 1 + N, D)).astype(np.float32)
  params, ours = run(module, both, both[:, :1])
  query = dense(both[0, 0], params["q"])
  key, value = dense(both[0], params["k"]), dense(both[0], params["v"])
  out = np.zeros(D)
  for h in range(heads):
    part = slice(h * D // heads, (h + 1) * D // heads)
    temperature = params["inverse_temperature"][h]
    weights = softmax(key[:, part] @ query[part] * temperature)
    out[part] = weights @ value[:, part]
  close(ours[0, 0], dense(out, params["proj"]))


@pytest.mark.parametrize(
  ("name", "parameters"),
  [("vit", 2_735_062), ("swin", 8_537_590), ("cait", 8_090_898)],
)
def test_published_sizes(name, parameters):
  model = models.build(name, num_classes=10, locality="spt+lsa")
  assert models.count(model) == parameters
