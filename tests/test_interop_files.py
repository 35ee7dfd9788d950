"""Weights files: read alike in all formats, and nothing in them is executed."""

import argparse
import collections
import os
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import read, write

WRITERS = {
  "safetensors": write.write_safetensors,
  "npz": write.write_npz,
  "pth": write.write_pth,
}
METADATA = {"arch": "vit", "name": "é \u2028 \U0001f600", "text": 'a\n"b"\\'}


@pytest.fixture(params=WRITERS)
def writer(request):
  if request.param == "pth":
    request.getfixturevalue("torch")
  return WRITERS[request.param]


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(torch, tmp_path, request):
  """Saves with torch, in both of its formats, and returns the path."""

  def to(x):
    path = tmp_path / "x.pth"
    torch.save(x, path, _use_new_zipfile_serialization=request.param)
    return path

  return to


def check_equal(arrays, expected):
  assert arrays.keys() == expected.keys()
  for name, x in expected.items():
    assert (arrays[name].dtype, arrays[name].shape) == (x.dtype, x.shape), name
    np.testing.assert_array_equal(arrays[name], x, err_msg=name)


def test_there_and_back(writer, tmp_path):
  arrays = {
    f"blocks.{i}.weight": (np.arange(24).reshape(4, 6) % 5).astype(dtype)
    for i, dtype in enumerate(("f2", "f4", "f8", "?", "i4", "i8", "u1"))
  } | {"scalar": np.array(3.5), "none/of.it": np.zeros((0, 3), np.float32)}
  path = tmp_path / "x.of_any_name"
  path.write_text("replaced")
  writer(path, arrays, METADATA)
  file = read.read_file(path)
  check_equal(file.arrays, arrays)
  assert METADATA.items() <= file.metadata.items()
  assert file.left_out == ()
  assert list(tmp_path.iterdir()) == [path]


def test_as_much_metadata_as_an_npz_can_hold(tmp_path):
  most = zipfile.ZIP_MAX_COMMENT - len('{"a": ""}')
  arrays = {"w": np.ones(2)}
  write.write_npz(tmp_path / "x", arrays, {"a": "b" * most})
  assert read.read_file(tmp_path / "x").metadata == {"a": "b" * most}
  with pytest.raises(UserError, match="room for 65535"):
    write.write_npz(tmp_path / "y", arrays, {"a": "b" * (most + 1)})


@pytest.mark.parametrize("weights_only", [False, True])
def test_torch_opens_what_is_written(weights_only, torch, tmp_path):
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  arrays = {name: x.numpy() + 1 for name, x in module.state_dict().items()}
  write.write_pth(tmp_path / "x.pth", arrays, METADATA)
  state = torch.load(tmp_path / "x.pth", weights_only=weights_only)
  module.load_state_dict(state, strict=True)
  check_equal({k: x.numpy() for k, x in module.state_dict().items()}, arrays)


def test_without_torch(torch, tmp_path, monkeypatch):
  write.write_pth(tmp_path / "x.pth", {"w": np.ones(2)}, {})
  monkeypatch.setitem(sys.modules, "torch", None)
  for use in (
    lambda: read.read_file(tmp_path / "x.pth"),
    lambda: write.write_pth(tmp_path / "y.pth", {"w": np.ones(2)}, {}),
  ):
    with pytest.raises(UserError, match=r"pip install 'vit-ssl-jax\[torch\]'"):
      use()
  assert not (tmp_path / "y.pth").exists()


def test_tensors_of_any_kind(save, torch):
  x = torch.arange(24.0).reshape(4, 6)
  state = {
    "all": x,
    "turned": x.T,
    "part": x[1:3, ::2],
    "repeated": x[0, :1].expand(3, 2),
    "parameter": torch.nn.Parameter(x[2]),
    "scalar": x[3, 3],
  }
  file = read.read_file(save(state | {"epoch": 3, "half": x.bfloat16()}))
  assert file.left_out == ()
  assert file.arrays.pop("half").dtype == np.float32
  check_equal(file.arrays, {k: t.detach().numpy() for k, t in state.items()})


def checkpoint(torch):
  """A pretraining checkpoint as DINO's code writes it."""
  names = ["pos_embed", "blocks.0.attn.qkv.weight", "norm.bias"]
  names = [f"backbone.{name}" for name in names]
  names += ["head.mlp.0.weight", "head.last_layer.w"]
  state = {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)}
  return {
    "student": {f"module.{name}": x + 10 for name, x in state.items()},
    "teacher": state,
    "optimizer": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
    "epoch": 3,
    "args": argparse.Namespace(arch="vit", depths=[2, 4], output_dir="/home"),
    "dino_loss": collections.OrderedDict(center=torch.zeros(1, 4)),
    "loss": np.float64(2.5),
    "history": np.arange(3.0),
  }


def test_pretraining_checkpoint(save, torch):
  tree = checkpoint(torch)
  names = ["pos_embed", "blocks.0.attn.qkv.weight", "norm.bias"]
  expected = {k: np.full((2, 3), i, "f") for i, k in enumerate(names)}
  file = read.read_file(save(tree))
  check_equal(file.arrays, expected)
  assert set(file.left_out) == {
    *("student", "optimizer", "args", "dino_loss", "history"),
    *("teacher.head.mlp.0.weight", "teacher.head.last_layer.w"),
  }
  del tree["teacher"]
  file = read.read_file(save(tree))
  check_equal(file.arrays, {k: x + 10 for k, x in expected.items()})


def test_a_name_twice(save, torch):
  x = torch.ones(2)
  path = save({"backbone.w": x, "module.backbone.w": x})
  with pytest.raises(UserError, match="holds w more than once"):
    read.read_file(path)


class Call:
  """Pickles as a call."""

  def __init__(self, *args):
    self.args = args

  def __reduce__(self):
    return self.args[0], self.args[1:]


def test_nothing_is_executed(save, torch, tmp_path):
  marker = tmp_path / "executed"
  call = Call(os.system, f"touch {marker}")
  path = save({"model": {"w": torch.ones(2)}, "x": call})
  with pytest.raises(UserError, match=r"holds \S+\.system, which is no data"):
    read.read_file(path)
  np.savez(tmp_path / "x.npz", w=np.array([call, 1], dtype=object))
  with pytest.raises(UserError, match=r"x\.npz is truncated or damaged: Obj"):
    read.read_file(tmp_path / "x.npz")
  assert not marker.exists()


def test_a_module_is_no_data(save, torch):
  with pytest.raises(UserError, match=r"holds torch\.nn\.modules\S+, which"):
    read.read_file(save(torch.nn.Linear(3, 2)))


@pytest.fixture(params=[*WRITERS, "legacy"])
def whole(request, tmp_path):
  """A file of each format, of a kilobyte or two."""
  path = tmp_path / f"x.{request.param}"
  arrays = {f"w{i}": np.ones((3, 5), dtype) for i, dtype in enumerate("fd?")}
  if request.param in ("pth", "legacy"):
    torch = request.getfixturevalue("torch")
  if request.param == "legacy":
    tensors = {name: torch.ones(3, 5) for name in arrays}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
  else:
    WRITERS[request.param](path, arrays, METADATA)
  return path


def test_truncated_files(whole):
  data = whole.read_bytes()
  for length in [*range(0, len(data), len(data) // 30), len(data) - 1]:
    whole.write_bytes(data[:length])
    with pytest.raises(UserError) as error:
      read.read_file(whole)
    assert str(whole) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files(whole):
  """Any changed byte gives arrays or one UserError."""
  data = whole.read_bytes()
  rng = np.random.default_rng(0)
  for place in rng.integers(0, len(data), 50):
    damaged = bytearray(data)
    damaged[place] ^= rng.integers(1, 256)
    whole.write_bytes(damaged)
    try:
      assert read.read_file(whole).arrays
    except UserError as error:
      assert str(whole) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "x is no safetensors, .*: it is empty"),
    (b"version https://git-lfs", "x is no safetensors, .*: it begins with b'"),
    (b"PK", "x is truncated or damaged"),
  ],
)
def test_other_files(content, message, tmp_path):
  (tmp_path / "x").write_bytes(content)
  with pytest.raises(UserError, match=message):
    read.read_file(tmp_path / "x")


def test_unreadable_files(tmp_path):
  with pytest.raises(UserError, match="x cannot be read: No such file"):
    read.read_file(tmp_path / "x")
  with pytest.raises(UserError, match="cannot be read: Is a directory"):
    read.read_file(tmp_path)


def test_no_weights(tmp_path):
  path = tmp_path / "x"
  safetensors.numpy.save_file({"head.mlp.0.w": np.ones(1)}, path)
  with pytest.raises(UserError, match="holds no arrays of a backbone's"):
    read.read_file(path)
  np.savez(tmp_path / "y.npz", text=np.array("x"))
  with pytest.raises(UserError, match="holds no arrays of weights"):
    read.read_file(tmp_path / "y.npz")
