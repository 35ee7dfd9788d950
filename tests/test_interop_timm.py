"""timm computes the same logits from our weights."""

import functools

import jax
import numpy as np
import pytest

from vit_ssl_jax import interop, models
from vit_ssl_jax.errors import UserError

SWIN = {"embed_dim": 8, "num_heads": (1, 2)}
MODELS = {
  "vit": ("vit", {"embed_dim": 16, "depth": 3, "num_heads": 4}),
  "vit of 24 pixels": (
    "vit",
    {"image_size": 24, "patch_size": 8, "embed_dim": 18, "depth": 2}
    | {"num_heads": 3, "mlp_ratio": 2.7},
  ),
  "swin": ("swin", SWIN | {"depths": (2, 3)}),
  "swin of 24 pixels": (
    "swin",
    SWIN
    | {"image_size": 24, "window_size": 3, "depths": (3, 1)}
    | {"mlp_ratio": 1.7},
  ),
  "swin, windows shrink": (
    "swin",
    SWIN | {"depths": (1, 2), "patch_size": 8},
  ),
  "swin, padded windows in place": (
    "swin",
    SWIN | {"image_size": 24, "depths": (2, 1)},
  ),
  "cait": ("cait", {"embed_dim": 16, "depth": 3, "num_heads": 4}),
  "cait of 24 pixels": (
    "cait",
    {"image_size": 24, "patch_size": 8, "embed_dim": 18, "depth": 2}
    | {"num_heads": 3, "mlp_ratio": 2.7, "depth_token_only": 3}
    | {"layer_scale_init": 0.3},
  ),
}
CASES = [*((key, 5) for key in MODELS), ("vit", 0), ("swin", 0), ("cait", 0)]


@functools.cache
def make(key, num_classes):
  """A model and parameters that are nowhere what they are at first."""
  name, sizes = MODELS[key]
  model = models.build(name, num_classes=num_classes, **sizes)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    lambda key: models.init(model, key), jax.random.key(0)
  )
  params = jax.tree.map(
    lambda x: np.float32(0.5 * rng.standard_normal(x.shape)), shapes
  )
  return model, params


@pytest.mark.parametrize(("key", "num_classes"), CASES)
def test_there_and_back(key, num_classes):
  model, params = make(key, num_classes)
  state = interop.to_torch(params, model, "timm")
  assert all(x.flags.c_contiguous for x in state.values())
  back = interop.from_torch(state, model, "timm")
  jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(("key", "num_classes"), CASES)
def test_same_logits(torch, key, num_classes):
  import timm

  model, params = make(key, num_classes)
  name, arguments = interop.timm_arguments(model)
  theirs = timm.create_model(name, **arguments)
  state = interop.to_torch(params, model, "timm")
  theirs.load_state_dict(
    {name: torch.from_numpy(x) for name, x in state.items()}, strict=True
  )
  side = model.image_size
  images = np.random.default_rng(1).standard_normal((2, side, side, 3))
  images = images.astype(np.float32)
  with torch.no_grad():
    want = theirs.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2)))
  ours = jax.jit(model.apply)({"params": params}, images)
  np.testing.assert_allclose(ours, want.numpy(), rtol=0, atol=1e-5)


def test_what_does_not_fit_is_listed():
  model, params = make("cait", 5)
  state = interop.to_torch(params, model, "timm")
  state["surplus"] = state.pop("head.bias")
  with pytest.raises(UserError, match=r"left over surplus; missing head\.bias"):
    interop.from_torch(state, model, "timm")


@pytest.mark.parametrize(
  ("name", "sizes", "why"),
  [
    ("vit", {"locality": "lsa"}, "locality"),
    ("cait", {"layer_scale_init": 0.0}, "LayerScale"),
    ("swin", {"image_size": 24}, "6 patches"),
  ],
)
def test_what_timm_cannot_express_is_refused(name, sizes, why):
  model = models.build(name, **sizes)
  with pytest.raises(UserError, match=why):
    interop.timm_arguments(model)
  with pytest.raises(UserError, match=why):
    interop.to_torch({}, model, "timm")


def test_projection_head_is_refused():
  with pytest.raises(UserError, match="projection head"):
    interop.to_torch({}, models.ProjectionHead(), "timm")
