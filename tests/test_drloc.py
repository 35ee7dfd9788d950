"""Dense relative localisation, done a second time by hand, and in training."""

import jax
import numpy as np

from vit_ssl_jax import models, train
from vit_ssl_jax.run import checkpoints, metrics
from vit_ssl_jax.train import losses


def test_loss_against_one_pair_at_a_time():
  rng = np.random.default_rng(0)
  offsets = rng.standard_normal((3, 5, 2)).astype(np.float32)
  first, second = rng.integers(0, 4, (2, 3, 5, 2))
  ours = losses.offset_error(offsets, first, second, (4, 8))
  errors = []
  for b in range(3):
    for m in range(5):
      for axis, side in ((0, 4), (1, 8)):
        distance = abs(int(first[b, m, axis]) - int(second[b, m, axis])) / side
        errors.append(abs(offsets[b, m, axis] - distance))
  np.testing.assert_allclose(ours, np.mean(errors), rtol=1e-6)


def test_pairs_and_head_against_one_image_at_a_time():
  B, h, w, D, pairs = 2, 3, 4, 5, 7
  rng = np.random.default_rng(1)
  grid = rng.standard_normal((B, h, w, D)).astype(np.float32)
  head = models.OffsetHead()
  params = head.init(jax.random.key(0), np.zeros((1, 2 * D)))["params"]
  params = jax.tree.map(lambda x: 5 * x + 0.1, params)
  keys = jax.random.split(jax.random.key(2), B)
  ours = losses.dense_relative_localization(
    lambda pairs: head.apply({"params": params}, pairs), grid, keys, pairs
  )
  errors = []
  for b in range(B):
    places = np.asarray(losses.sample_pairs(keys[b], pairs, (h, w)))
    for (i, j), (k, m) in zip(*places, strict=True):
      x = np.concatenate([grid[b, i, j], grid[b, k, m]])
      for name in ("fc1", "fc2", "fc3"):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = x if name == "fc3" else np.maximum(x, 0)
      errors += [abs(x[0] - abs(i - k) / h), abs(x[1] - abs(j - m) / w)]
  np.testing.assert_allclose(ours, np.mean(errors), rtol=1e-4)


def test_pairs_cover_the_grid():
  pairs = losses.sample_pairs(jax.random.key(0), 2000, (2, 3))
  for positions in np.asarray(pairs):
    counts = np.unique(positions, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 0.7 * counts.max()


def test_training_with_it(finetune_tiny, tmp_path):
  """Its loss is part of the whole, goes down, and its head is trained."""
  finetune_tiny.drloc.update(enabled=True, weight=0.5)
  finetune_tiny.mix.probability = 0.0
  finetune_tiny.update(epochs=20, evaluate_every_epochs=20)
  finetune_tiny.checkpoint_every_steps = 60
  result = train.run(finetune_tiny, tmp_path)
  lines = metrics.read(tmp_path)
  assert len(lines) == 60
  last = np.mean([line["drloc"] for line in lines[-10:]])
  assert last < np.mean([line["drloc"] for line in lines[:3]])
  state, _ = checkpoints.read(tmp_path)
  assert set(state["offset_head"]) == {"fc1", "fc2", "fc3"}
  # The classifier's size is what a user will keep.
  assert result["parameters"] < sum(
    x.size for x in jax.tree.leaves(state["offset_head"])
  )
