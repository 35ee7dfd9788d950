"""The same numbers on one device, on two, and with parameters split."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from vit_ssl_jax import inputs, loop, models, pretrain, sharding
from vit_ssl_jax.errors import UserError


def mesh_of(data, fsdp):
  return jax.make_mesh(
    (data, fsdp),
    ("data", "fsdp"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[: data * fsdp],
  )


def train(config, mesh):
  """Three steps of pretraining on one mesh; the state they end with."""
  model = models.from_config(config, 0)
  head = models.ProjectionHead(**config.head)
  config, _, source = inputs.open_data(config, mesh)
  tables = pretrain.make_schedules(config, source.steps_per_epoch)
  optimizer = pretrain.make_optimizer(config, tables, source.steps_per_epoch)
  state = jax.jit(
    lambda: pretrain.init_state(model, head, optimizer, jax.random.key(0))
  )()
  shardings = sharding.state_sharding(mesh, state)
  step = loop.compiled(
    pretrain.make_train_step(config, model, head, optimizer, tables),
    source,
    shardings,
  )
  state = jax.device_put(state, shardings)
  items = source.items(0)
  for _ in range(3):
    state, _ = step(state, source.arrays, next(items))
  return state


@pytest.mark.parametrize(
  ("arch", "shape"),
  [
    ("vit", (2, 1)),
    ("vit", (1, 2)),
    pytest.param("swin", (1, 2), marks=pytest.mark.long),
    pytest.param("cait", (1, 2), marks=pytest.mark.long),
  ],
)
def test_devices_change_rounding_alone(arch, shape, make_tiny, monkeypatch):
  monkeypatch.setattr(sharding, "SMALLEST", 1)
  config = make_tiny("pretrain", arch)
  config.optim.warmup_epochs = 0  # so that the first step counts
  one = train(config, mesh_of(1, 1))
  two = train(config, mesh_of(*shape))
  if shape == (1, 2):
    specs = jax.tree.map(lambda x: x.sharding.spec, two.student["backbone"])
    assert any("fsdp" in spec for spec in jax.tree.leaves(specs))
  # Adam's step does not shrink with the gradient, so rounding shows there.
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


def test_what_the_devices_do_not_divide():
  with pytest.raises(
    UserError, match="batch_size=3 is not a multiple of the 2"
  ):
    sharding.make_mesh(1, 3)
  with pytest.raises(UserError, match=r"mesh\.fsdp=3 does not divide"):
    sharding.make_mesh(3, 6)
