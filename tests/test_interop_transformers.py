"""transformers computes the same logits from our weights."""

import functools
import json

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
  "swin, padded windows": (
    "swin",
    SWIN | {"image_size": 20, "depths": (3, 2)},
  ),
}


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


@pytest.mark.parametrize("key", MODELS)
def test_there_and_back(key):
  model, params = make(key, 5)
  state = interop.to_torch(params, model, "transformers")
  assert all(x.flags.c_contiguous for x in state.values())
  back = interop.from_torch(state, model, "transformers")
  jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("key", MODELS)
def test_same_logits(torch, key, num_classes, tmp_path):
  """Through files, as it reads and writes them."""
  import transformers
  from safetensors import numpy as safetensors

  model, params = make(key, num_classes)
  config = interop.transformers_config(model, list("abcde")[:num_classes])
  state = interop.to_torch(params, model, "transformers")
  (tmp_path / "config.json").write_text(json.dumps(config))
  safetensors.save_file(
    state, tmp_path / "model.safetensors", metadata={"format": "pt"}
  )
  vit = config["model_type"] == "vit"
  options = {"add_pooling_layer": not vit} if not num_classes else {}
  theirs, report = getattr(
    transformers, config["architectures"][0]
  ).from_pretrained(tmp_path, output_loading_info=True, **options)
  assert not any(report.values())
  if num_classes:
    assert theirs.config.id2label[1] == "b"

  side = model.image_size
  images = np.random.default_rng(1).standard_normal((2, side, side, 3))
  images = images.astype(np.float32)
  with torch.no_grad():
    out = theirs.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2)))
  if num_classes:
    want = out.logits
  else:
    want = out.last_hidden_state[:, 0] if vit else out.pooler_output
  ours = jax.jit(model.apply)({"params": params}, images)
  # Of Swin's merged patches the epsilon differs.
  atol = 1e-5 if vit else 1e-4
  np.testing.assert_allclose(ours, want.numpy(), rtol=0, atol=atol)

  theirs.save_pretrained(tmp_path / "again")
  again = safetensors.load_file(tmp_path / "again" / "model.safetensors")
  back = interop.from_torch(again, model, "transformers")
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_what_does_not_fit_is_listed():
  model, params = make("swin", 5)
  state = interop.to_torch(params, model, "transformers")
  state["surplus"] = state.pop("classifier.bias")
  with pytest.raises(
    UserError, match=r"left over surplus; missing classifier\.bias"
  ):
    interop.from_torch(state, model, "transformers")


def test_other_relative_positions_are_refused():
  model, params = make("swin", 5)
  state = interop.to_torch(params, model, "transformers")
  name = next(name for name in state if name.endswith("position_index"))
  with pytest.raises(UserError, match=f"{name} is not that of windows"):
    interop.from_torch(state | {name: state[name].T}, model, "transformers")


@pytest.mark.parametrize(
  ("name", "sizes", "why"),
  [
    ("vit", {"locality": "spt"}, "locality"),
    ("cait", {}, "no CaiT"),
    ("swin", {"patch_size": 4}, "our window shrinks"),
  ],
)
def test_what_transformers_cannot_express_is_refused(name, sizes, why):
  model = models.build(name, **sizes)
  with pytest.raises(UserError, match=why):
    interop.transformers_config(model)
  with pytest.raises(UserError, match=why):
    interop.to_torch({}, model, "transformers")


def test_as_many_labels_as_classes():
  model, _ = make("vit", 5)
  with pytest.raises(UserError, match="2 labels for 5 classes"):
    interop.transformers_config(model, ["cat", "dog"])
  config = interop.transformers_config(model)
  assert config["label2id"]["LABEL_4"] == 4
