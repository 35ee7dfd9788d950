"""Reading weights by name is strict."""

import jax
import numpy as np
import pytest

from vit_ssl_jax import interop, models
from vit_ssl_jax.errors import UserError

SIZES = {
  "vit": {"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2},
  "swin": {"embed_dim": 8, "depths": (2, 3), "num_heads": (1, 2)},
  "cait": {"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2},
}


def make(name, **sizes):
  """A small model, its parameters, and the same under PyTorch's names."""
  model = models.build(name, image_size=8, **SIZES[name], **sizes)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(rng.standard_normal(x.shape)), models.shapes(model)
  )
  return model, params, interop.to_torch(params, model)


@pytest.fixture(scope="module")
def weights():
  return make("vit")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("locality", ["", "spt+lsa"])
def test_there_and_back(name, locality):
  model, params, state = make(name, locality=locality)
  back = interop.from_torch(state, model)
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_other_relative_positions_are_refused():
  model, _, state = make("swin")
  name = "layers.0.blocks.1.attn.relative_position_index"
  assert state[name].dtype == np.int64
  with pytest.raises(UserError, match=f"{name} is not that of windows"):
    interop.from_torch(state | {name: state[name].T}, model)


def test_what_does_not_fit_is_listed(weights):
  model, _, state = weights
  wrong = dict(state, surplus=np.zeros(3))
  wrong.pop("cls_token")
  wrong["norm.bias"] = np.zeros(9)
  with pytest.raises(UserError) as error:
    interop.from_torch(wrong, model)
  message = str(error.value)
  assert "missing cls_token" in message
  assert "left over surplus" in message
  assert "norm.bias has shape (9,) and not (8,)" in message


def test_head_with_a_gain_of_its_own_is_refused():
  head = models.ProjectionHead(6, 5, 4)
  params = head.init(jax.random.key(0), np.zeros((1, 3), np.float32))["params"]
  state = interop.to_torch(params, head)
  jax.tree.map(
    np.testing.assert_array_equal, interop.from_torch(state, head), params
  )
  state["last_layer.weight_g"] *= 2
  with pytest.raises(UserError, match="weight_g"):
    interop.from_torch(state, head)


def test_unknown_layout(weights):
  model, params, _ = weights
  with pytest.raises(UserError, match="unknown layout"):
    interop.to_torch(params, model, layout="keras")
