"""The steps of both stages are programs for accelerators too, in bfloat16."""

import jax
import numpy as np
import pytest

from vit_ssl_jax import finetune, loop, models, optimizers, pretrain

PLATFORMS = ("cuda", "tpu")


def step_and_state(stage, config):
  """A stage's step, and the shapes of its state."""
  config.dtype = "bfloat16"
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  if stage == "pretrain":
    model = models.from_config(config, 0)
    head = models.ProjectionHead(**config.head, dtype=model.dtype)
    tables = pretrain.make_schedules(config, 3)
    optimizer = pretrain.make_optimizer(config, tables, 3)
    key = loop.init_key(config)
    state = jax.eval_shape(
      lambda: pretrain.init_state(model, head, optimizer, key)
    )
    step = pretrain.make_train_step(config, model, head, optimizer, tables)
    return step, state
  model = models.from_config(config, 3)
  rates = finetune.make_schedule(config, 3)
  optimizer = optimizers.finetune(rates, config.optim.weight_decay)
  key = loop.init_key(config)
  state = jax.eval_shape(lambda: finetune.init_state(model, optimizer, key))
  return finetune.make_train_step(config, model, optimizer, rates), state


@pytest.mark.parametrize("arch", ["vit", "swin", "cait"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_steps_lower_for_accelerators(stage, arch, make_tiny):
  step, state = step_and_state(stage, make_tiny(stage, arch))
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
