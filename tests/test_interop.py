"""Other frameworks' names, strictly, and the same logits there."""

import functools
import json

import jax
import numpy as np
import pytest

from vit_ssl_jax import interop, models
from vit_ssl_jax.errors import UserError

VIT = {"embed_dim": 16, "depth": 3, "num_heads": 4}
OF_24_PIXELS = {
  **{"image_size": 24, "patch_size": 8, "embed_dim": 18, "depth": 2},
  **{"num_heads": 3, "mlp_ratio": 2.7},
}
SWIN = {"embed_dim": 8, "num_heads": (1, 2)}
MODELS = {
  "vit": ("vit", VIT),
  "vit of 24 pixels": ("vit", OF_24_PIXELS),
  "swin": ("swin", SWIN | {"depths": (2, 3)}),
  "swin of 24 pixels": (
    "swin",
    SWIN
    | {"image_size": 24, "window_size": 3, "depths": (3, 1)}
    | {"mlp_ratio": 1.7},
  ),
  "swin, windows shrink": ("swin", SWIN | {"depths": (1, 2), "patch_size": 8}),
  "swin, padded windows in place": (
    "swin",
    SWIN | {"image_size": 24, "depths": (2, 1)},
  ),
  "swin, padded windows": ("swin", SWIN | {"image_size": 20, "depths": (3, 2)}),
  "cait": ("cait", VIT),
  "cait of 24 pixels": (
    "cait",
    OF_24_PIXELS | {"depth_token_only": 3, "layer_scale_init": 0.3},
  ),
}
NOT_TIMM = ("swin, padded windows",)
NOT_TRANSFORMERS = (
  "swin, windows shrink",
  "swin, padded windows in place",
  "cait",
  "cait of 24 pixels",
)
FOR_TIMM = [(key, 5) for key in MODELS if key not in NOT_TIMM]
FOR_TIMM += [("vit", 0), ("swin", 0), ("cait", 0)]
FOR_TRANSFORMERS = [
  (key, classes)
  for key in MODELS
  if key not in NOT_TRANSFORMERS
  for classes in (0, 5)
]


@functools.cache
def make(key, num_classes, locality=""):
  """A model and parameters that are far from their initial values."""
  name, sizes = MODELS[key]
  sizes = sizes | {"num_classes": num_classes, "locality": locality}
  model = models.build(name, **sizes)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(0.5 * rng.standard_normal(x.shape)),
    models.shapes(model),
  )
  return model, params


@functools.cache
def outputs(key, num_classes):
  """Images (N, 3, S, S) as PyTorch takes them, and our logits."""
  model, params = make(key, num_classes)
  side = model.image_size
  images = np.random.default_rng(1).standard_normal((2, side, side, 3))
  images = images.astype(np.float32)
  logits = jax.jit(model.apply)({"params": params}, images)
  return images.transpose(0, 3, 1, 2), logits


def check_there_and_back(state, key, num_classes, layout):
  model, params = make(key, num_classes)
  assert all(x.flags.c_contiguous for x in state.values())
  back = interop.from_torch(state, model, layout)
  jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("key", ["vit", "swin", "cait"])
@pytest.mark.parametrize("locality", ["", "spt+lsa"])
def test_reference(key, locality):
  model, params = make(key, 5, locality)
  state = interop.to_torch(params, model)
  back = interop.from_torch(state, model)
  jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(("key", "num_classes"), FOR_TIMM)
def test_timm(torch, key, num_classes):
  import timm

  model, params = make(key, num_classes)
  state = interop.to_torch(params, model, "timm")
  check_there_and_back(state, key, num_classes, "timm")
  name, arguments = interop.timm_arguments(model)
  theirs = timm.create_model(name, **arguments).eval()
  theirs.load_state_dict(
    {name: torch.from_numpy(x) for name, x in state.items()}, strict=True
  )
  images, ours = outputs(key, num_classes)
  with torch.no_grad():
    want = theirs(torch.from_numpy(images)).numpy()
  np.testing.assert_allclose(ours, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("key", "num_classes"), FOR_TRANSFORMERS)
def test_transformers(torch, key, num_classes, tmp_path):
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
  kind = getattr(transformers, config["architectures"][0])
  theirs, report = kind.from_pretrained(
    tmp_path, output_loading_info=True, **options
  )
  assert not any(report.values())
  images, ours = outputs(key, num_classes)
  with torch.no_grad():
    out = theirs.eval()(torch.from_numpy(images.copy()))
  if num_classes:
    assert theirs.config.id2label[1] == "b"
    want = out.logits
  else:
    want = out.last_hidden_state[:, 0] if vit else out.pooler_output
  # Of Swin's merged patches the epsilon differs.
  atol = 1e-5 if vit else 1e-4
  np.testing.assert_allclose(ours, want.numpy(), rtol=0, atol=atol)
  theirs.save_pretrained(tmp_path / "again")
  again = safetensors.load_file(tmp_path / "again" / "model.safetensors")
  check_there_and_back(again, key, num_classes, "transformers")


@pytest.mark.parametrize(
  ("layout", "key", "bias"),
  [
    ("reference", "vit", "head.bias"),
    ("timm", "cait", "head.bias"),
    ("transformers", "swin", "classifier.bias"),
  ],
)
def test_what_does_not_fit_is_listed(layout, key, bias):
  model, params = make(key, 5)
  state = interop.to_torch(params, model, layout)
  state["surplus"] = state.pop(bias)
  with pytest.raises(UserError, match=f"left over surplus; missing {bias}"):
    interop.from_torch(state, model, layout)


@pytest.mark.parametrize("layout", ["reference", "transformers"])
def test_other_relative_positions_are_refused(layout):
  model, params = make("swin", 5)
  state = interop.to_torch(params, model, layout)
  name = next(name for name in state if name.endswith("position_index"))
  with pytest.raises(UserError, match=f"{name} is not that of windows"):
    interop.from_torch(state | {name: state[name].T}, model, layout)


@pytest.mark.parametrize(
  ("layout", "name", "sizes", "why"),
  [
    ("timm", "vit", {"locality": "lsa"}, "locality"),
    ("timm", "cait", {"layer_scale_init": 0.0}, "LayerScale"),
    ("timm", "swin", {"image_size": 24}, "6 patches"),
    ("transformers", "vit", {"locality": "spt"}, "locality"),
    ("transformers", "cait", {}, "no cait: possible are vit and swin"),
    ("transformers", "swin", {"patch_size": 4}, "must not exceed the 2"),
  ],
)
def test_what_cannot_be_expressed_is_refused(layout, name, sizes, why):
  model = models.build(name, **sizes)
  with pytest.raises(UserError, match=why):
    interop.to_torch({}, model, layout)
  describe = {
    "timm": interop.timm_arguments,
    "transformers": interop.transformers_config,
  }
  with pytest.raises(UserError, match=why):
    describe[layout](model)


def test_a_projection_head_has_a_gain_of_1():
  head = models.ProjectionHead(6, 5, 4)
  params = head.init(jax.random.key(0), np.zeros((1, 3), np.float32))["params"]
  state = interop.to_torch(params, head)
  jax.tree.map(
    np.testing.assert_array_equal, interop.from_torch(state, head), params
  )
  state["last_layer.weight_g"] *= 2
  with pytest.raises(UserError, match="weight_g"):
    interop.from_torch(state, head)
  with pytest.raises(UserError, match="projection head"):
    interop.to_torch(params, head, "timm")


def test_unknown_layout():
  model, params = make("vit", 5)
  with pytest.raises(UserError, match="unknown layout"):
    interop.to_torch(params, model, layout="keras")


def test_as_many_labels_as_classes():
  model, _ = make("vit", 5)
  with pytest.raises(UserError, match="2 labels for 5 classes"):
    interop.transformers_config(model, ["cat", "dog"])
  config = interop.transformers_config(model)
  assert config["label2id"]["LABEL_4"] == 4
