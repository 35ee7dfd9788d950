"""Ten steps on each of several meshes, in a process with eight devices."""

import json

import jax
import numpy as np
import tiny

from vit_ssl_jax import train
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.train import timing

STEPS = 10


def train_on(config, mesh):
  """Makes the steps on a mesh; their losses, and the state they end with."""
  make_stage = train.stage_of(config).make_stage
  init, step = timing.stage(config, make_stage, 10, mesh)
  shardings = meshes.state_sharding(mesh, jax.eval_shape(init))
  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
  state = jax.jit(init, out_shardings=shardings)()
  side, count = config.model.image_size, config.batch_size
  losses = []
  for i in range(STEPS):
    rng = np.random.default_rng(i)
    batch = {
      "image": rng.integers(0, 256, (count, side, side, 3), np.uint8),
      "label": rng.integers(0, 10, count, np.int32),
    }
    batch = jax.device_put(batch, meshes.batch_sharding(mesh))
    state, metrics = step(state, batch)
    losses.append(metrics["loss"])
  return np.array(losses), state


def main(stage, arch, *cases):
  """Prints a line of JSON for each mesh, "DATAxFSDPxMICROBATCHES".

  In it are the largest differences from one device: of losses, relative, and of
  the state. The stage is "pretrain", "mae" or "finetune".
  """
  meshes.SMALLEST = 1  # so that the tiny model is split too
  mae = stage == "mae"
  config = tiny.config("pretrain" if mae else stage, arch, "none")
  if mae:
    config.objective = "mae"
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  config.optim.warmup_epochs = 0  # so that the first step counts
  expected, one = None, None
  for case in ("1x1x1", *cases):
    data, fsdp, config.accumulate_steps = map(int, case.split("x"))
    devices = jax.devices()[: data * fsdp]
    losses, state = train_on(config, meshes.mesh_of((data, fsdp), devices))
    if one is None:
      expected, one = losses, jax.device_get(state)
      continue
    specs = {x.sharding.spec for x in jax.tree.leaves(state)}
    apart = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), one, state)
    found = {
      "case": case,
      "split": any("fsdp" in spec for spec in specs),
      "loss": float(np.max(np.abs(losses / expected - 1))),
      "state": float(max(jax.tree.leaves(apart))),
    }
    print(json.dumps(found), flush=True)
