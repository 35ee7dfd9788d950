"""Whom weight decay, clipping and freezing touch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_ssl_jax.train import optimizers

PARAMS = {
  "backbone": {
    "blocks": {"fc": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}},
    "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
    "cls_token": jnp.ones((1, 1, 3)),
  },
  "head": {"last_layer": {"kernel": jnp.ones((3, 4))}},
}
DECAY_FREE = (lambda _: 0.1, lambda _: 0.0, 0, 0)
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def run(optimizer, gradients, steps):
  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(steps):
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_pretraining_decays_matrices_alone():
  optimizer = optimizers.pretrain(lambda _: 0.1, lambda _: 0.5, 0, 0)
  params = run(optimizer, ZEROS, 1)
  decayed = {
    jax.tree_util.keystr(path)
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if (np.asarray(x) != 1).all()
  }
  assert decayed == {
    "['backbone']['blocks']['fc']['kernel']",
    "['backbone']['cls_token']",
    "['head']['last_layer']['kernel']",
  }


def test_finetuning_decays_everything():
  params = run(optimizers.finetune(lambda _: 0.1, 0.5), ZEROS, 1)
  for leaf in jax.tree.leaves(params):
    np.testing.assert_allclose(leaf, 0.95, rtol=1e-6)


def test_clipping_is_by_tensor_and_by_block():
  gradients = jax.tree.map(jnp.zeros_like, PARAMS)
  kernel = jnp.stack([jnp.full((3, 3), 10.0), jnp.full((3, 3), 1e-3)])
  gradients["backbone"]["blocks"]["fc"]["kernel"] = kernel
  clipped, _ = optimizers.clip_per_tensor(1.5).update(
    gradients, optax.EmptyState()
  )
  clipped = clipped["backbone"]["blocks"]["fc"]["kernel"]
  np.testing.assert_allclose(np.linalg.norm(clipped[0]), 1.5, rtol=1e-5)
  np.testing.assert_array_equal(clipped[1], kernel[1])


def test_frozen_last_layer_begins_afresh():
  """Frozen for 3 steps, it then moves as a fresh optimizer would move it."""

  def rate(step):
    return 0.1 + 0.02 * step

  def decay(step):
    return 0.3 + 0.02 * step

  frozen = optimizers.pretrain(rate, decay, 0, 3)
  params = run(frozen, ONES, 3)
  np.testing.assert_array_equal(params["head"]["last_layer"]["kernel"], 1)
  assert (params["backbone"]["cls_token"] < 1).all()
  params = run(frozen, ONES, 5)
  fresh = optimizers.pretrain(
    lambda step: rate(step + 3), lambda step: decay(step + 3), 0, 0
  )
  np.testing.assert_allclose(
    params["head"]["last_layer"]["kernel"],
    run(fresh, ONES, 2)["head"]["last_layer"]["kernel"],
    rtol=1e-6,
  )


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_muon_turns_the_matrices_of_blocks(stage):
  """There they are orthogonal and of the size of AdamW's."""
  rng = np.random.default_rng(0)
  gradients = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), PARAMS
  )
  make = getattr(optimizers, stage)
  given = (lambda _: 0.1, 0.0) if stage == "finetune" else DECAY_FREE
  muon = run(make(*given, name="muon"), gradients, 1)
  adamw = run(make(*given), gradients, 1)
  kernels = muon["backbone"]["blocks"]["fc"].pop("kernel")
  adamw["backbone"]["blocks"]["fc"].pop("kernel")
  jax.tree.map(np.testing.assert_array_equal, muon, adamw)
  for kernel, gradient in zip(
    kernels, gradients["backbone"]["blocks"]["fc"]["kernel"], strict=True
  ):
    turned = (1 - kernel) / 0.1 / 0.2 / 3**0.5  # entries' root mean square
    u, _, vt = np.linalg.svd(gradient)
    singular = u.T @ turned @ vt.T  # near 1, by five steps of Newton-Schulz
    assert (np.abs(np.diag(singular) - 1) < 0.35).all()
    np.testing.assert_allclose(
      singular - np.diag(np.diag(singular)), 0, atol=1e-5
    )
