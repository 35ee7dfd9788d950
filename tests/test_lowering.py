"""The steps of both stages are programs for accelerators too, in bfloat16."""

import jax
import numpy as np
import pytest

from vit_ssl_jax import train
from vit_ssl_jax.train import timing

PLATFORMS = ("cuda", "tpu")


@pytest.mark.parametrize("arch", ["vit", "swin", "cait"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_steps_lower_for_accelerators(stage, arch, make_tiny):
  check_lowers(make_tiny(stage, arch))


def test_the_step_of_hidden_patches_does_too(pretrain_tiny):
  pretrain_tiny.objective = "mae"
  check_lowers(pretrain_tiny)


def check_lowers(config):
  config.update(dtype="bfloat16", mean=(0.5,) * 3, std=(0.25,) * 3)
  make_stage = train.stage_of(config).make_stage
  init, step = timing.stage(config, make_stage, 10)
  state = jax.eval_shape(init)
  batch = {
    "image": jax.ShapeDtypeStruct((16, 8, 8, 3), np.uint8),
    "label": jax.ShapeDtypeStruct((16,), np.int32),
  }
  traced = jax.jit(step).trace(state, batch)
  after, _ = traced.out_info
  jax.tree.map(check_same, after, state)
  text = traced.lower(lowering_platforms=PLATFORMS).as_text()
  assert "bf16" in text


def check_same(after, before):
  """Parameters and all else of a state keep their float32."""
  assert (after.shape, after.dtype) == (before.shape, before.dtype)
