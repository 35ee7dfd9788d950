"""The steps of all stages are programs for accelerators too, in bfloat16."""

import jax
import numpy as np
import pytest

from vit_ssl_jax import train
from vit_ssl_jax.train import timing

STEPS = [(x, y) for x in ("pretrain", "finetune") for y in ("swin", "cait")]
STEPS += [("pretrain", "vit"), ("finetune", "vit"), ("mae", "vit")]


@pytest.mark.parametrize(("stage", "arch"), STEPS)
def test_steps_lower_for_accelerators(stage, arch, make_tiny):
  """Parameters and all else of a state keep their type."""
  config = make_tiny("pretrain" if stage == "mae" else stage, arch)
  config.update(dtype="bfloat16", mean=(0.5,) * 3, std=(0.25,) * 3)
  if stage == "mae":
    config.objective = "mae"
  init, step = timing.stage(config, train.stage_of(config).make_stage, 10)
  state = jax.eval_shape(init)
  batch = {
    "image": jax.ShapeDtypeStruct((16, 8, 8, 3), np.uint8),
    "label": jax.ShapeDtypeStruct((16,), np.int32),
  }
  traced = jax.jit(step).trace(state, batch)
  after, before = (
    jax.tree.map(lambda x: (x.shape, x.dtype), x)
    for x in (traced.out_info[0], state)
  )
  assert after == before
  assert "bf16" in traced.lower(lowering_platforms=("cuda", "tpu")).as_text()
