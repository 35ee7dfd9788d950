"""Files of weights: read alike in all formats, and never executed."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import subprocess
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import weights, writing

WRITERS = {
  "safetensors": writing.safetensors,
  "npz": writing.npz,
  "pth": writing.pth,
}
METADATA = {"arch": "vit", "heads": "12"}


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(torch, tmp_path, request):
  """Saves with torch, in both of its formats, and gives the path."""

  def to(x, name="x.pth"):
    path = tmp_path / name
    torch.save(x, path, _use_new_zipfile_serialization=request.param)
    return path

  return to


def check_equal(given, expected):
  assert given.keys() == expected.keys()
  for name, x in expected.items():
    x = np.asarray(x)
    assert (given[name].dtype, given[name].shape) == (x.dtype, x.shape), name
    np.testing.assert_array_equal(given[name], x, err_msg=name)


@pytest.mark.parametrize(
  "dtype", [np.float16, np.float32, np.float64, np.int64, ml_dtypes.bfloat16]
)
def test_torchs_tensors(dtype, save, torch):
  dtype = np.dtype(dtype)
  x = torch.arange(24).reshape(4, 6) % 5
  x = x.to(getattr(torch, dtype.name))
  state = {"w": x, "scalar": x[1, 1], "none/of.it": x[:0]}
  back = weights.read(save(collections.OrderedDict(state)))
  expected = (np.arange(24).reshape(4, 6) % 5).astype(dtype)
  check_equal(
    back.arrays,
    {"w": expected, "scalar": expected[1, 1], "none/of.it": expected[:0]},
  )
  assert back.format == "pth"


def test_torchs_strided_and_shared_tensors(save, torch):
  x = torch.arange(24.0).reshape(4, 6)
  given = {
    "all": x,
    "turned": x.T,
    "part": x[1:3, ::2],
    "repeated": x[0, :1].expand(3, 2),
    "parameter": torch.nn.Parameter(x[2]),
    "scalar": x[3, 3],
  }
  back = weights.read(save(given | {"epoch": 3}))
  assert (back.metadata, back.left_out) == ({"epoch": "3"}, ())
  back = back.arrays
  check_equal(back, {name: t.detach().numpy() for name, t in given.items()})


def test_a_module(save, torch):
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  back = weights.read(save(module.state_dict()))  # with attributes: _metadata
  expected = {name: x.numpy() for name, x in module.state_dict().items()}
  check_equal(back.arrays, expected)
  with pytest.raises(
    UserError, match=r"x\.pth holds torch\.nn\.modules\S+, which is no data"
  ):
    weights.read(save(module))


def checkpoint(torch):
  """A pretraining checkpoint as DINO's code makes it."""
  names = ["pos_embed", "blocks.0.attn.qkv.weight", "norm.bias"]
  names = [f"backbone.{name}" for name in names]
  names += ["head.mlp.0.weight", "head.last_layer.w"]
  state = {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)}
  moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)}
  return {
    "student": {f"module.{name}": x + 10 for name, x in state.items()},
    "teacher": state,
    "optimizer": {
      "state": {0: moments},
      "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}],
    },
    "epoch": 3,
    "args": argparse.Namespace(
      **{"arch": "vit", "lr": 5e-4, "depths": [2, 4], "x": None},
      **{"output_dir": "/home/her/runs", "data": "C:\\data", "where": "../x"},
    ),
    "file": "runs/x.pth",
    "dino_loss": collections.OrderedDict(center=torch.zeros(1, 4)),
    "loss": np.float64(2.5),
    "history": np.arange(3.0),
  }


def test_pretraining_checkpoint(save, torch):
  names = ["pos_embed", "blocks.0.attn.qkv.weight", "norm.bias"]
  given = checkpoint(torch)
  path = save(given)
  back = weights.read(path)
  expected = {name: np.full((2, 3), i) for i, name in enumerate(names)}
  check_equal(
    back.arrays, {name: np.float32(x) for name, x in expected.items()}
  )
  assert back.entry == "teacher"
  assert back.metadata == {
    "epoch": "3",
    "loss": "2.5",
    "args.arch": "vit",
    "args.lr": "0.0005",
  }
  assert back.left_out == (
    *("student", "optimizer", "args", "file", "dino_loss", "history"),
    *("teacher.head.mlp.0.weight", "teacher.head.last_layer.w"),
  )
  del given["teacher"]
  back = weights.read(save(given))
  assert (back.entry, back.arrays["pos_embed"][0, 0]) == ("student", 10)


@pytest.mark.parametrize("entry", ["model_state_dict", "state_dict", "model"])
def test_fine_tuned_checkpoint(entry, save, torch):
  state = {
    "module.head.weight": torch.ones(2),
    "module.my.module.backbone.w": torch.zeros(2),
    "module.head.mlp.0.weight": torch.zeros(2),
    "module.step": 4,
  }
  back = weights.read(save({entry: state, "acc": 91.5}))
  names = ["head.weight", "my.module.backbone.w"]
  check_equal(
    back.arrays, {names[0]: np.ones(2, "f"), names[1]: np.zeros(2, "f")}
  )
  assert (back.entry, back.metadata) == (entry, {"acc": "91.5"})
  assert back.left_out == (
    f"{entry}.module.head.mlp.0.weight",
    f"{entry}.module.step",
  )


@pytest.mark.parametrize(
  "prefix",
  ["backbone.", "module.backbone.", "backbone.module.", "module.module."],
)
def test_prefixes(prefix, tmp_path):
  x = np.ones(2)
  given = {f"{prefix}norm.weight": x, f"{prefix}head.weight": x}
  for write in (writing.pth, writing.safetensors):
    write(tmp_path / "x", given)
    back = weights.read(tmp_path / "x")
    check_equal(back.arrays, {"norm.weight": x, "head.weight": x})
  writing.npz(tmp_path / "x", given)
  assert weights.read(tmp_path / "x").arrays.keys() == given.keys()


def test_outside_of_the_backbone(tmp_path):
  given = dict.fromkeys(
    ["module.backbone.norm.bias", "module.center", "module.head.last_layer.w"],
    np.ones(2),
  )
  writing.pth(tmp_path / "x", given)
  back = weights.read(tmp_path / "x")
  assert list(back.arrays) == ["norm.bias"]
  assert back.left_out == ("module.center", "module.head.last_layer.w")
  twice = {"module.backbone.x": np.ones(1), "backbone.x": np.zeros(1)}
  writing.pth(tmp_path / "y", twice)
  with pytest.raises(UserError, match="y holds x more than once"):
    weights.read(tmp_path / "y")


class Call:
  """Pickles as a call."""

  def __init__(self, function, *args):
    self.call = (function, args)

  def __reduce__(self):
    return self.call


def calls(marker):
  """What is called -> a pickle's call of it that would make `marker`."""
  code = f"open({str(marker)!r}, 'w')"
  return {
    f"{os.system.__module__}.system": Call(os.system, f"touch {marker}"),
    "builtins.eval": Call(eval, code),
    "builtins.exec": Call(exec, code),
    "builtins.getattr": Call(getattr, Call(open, marker, "w"), "name"),
    "subprocess.Popen": Call(subprocess.Popen, ["touch", marker]),
    "numpy.save": Call(np.save, marker, 1),
  }


def test_calls_are_refused(save, torch, tmp_path):
  marker = tmp_path / "executed"
  for name, call in calls(str(marker)).items():
    path = save({"model": {"w": torch.ones(2)}, "extra": [call]})
    with pytest.raises(UserError, match=r"x\.pth") as error:
      weights.read(path)
    assert "\n" not in str(error.value)
    assert not marker.exists(), name
  for protocol in (2, 5):
    path.write_bytes(pickle.dumps(call, protocol, fix_imports=False))
    with pytest.raises(UserError, match=r"x\.pth"):
      weights.read(path)
    assert not marker.exists()


class Dtype:
  """Pickles as a dtype that lies about its memory."""

  def __reduce__(self):
    fields = {"a": (np.dtype("i8"), 1 << 40)}
    state = (3, "|", None, ("a",), fields, 8, 1, 64)
    return np.dtype, ("O8", False, True), state


@pytest.mark.parametrize("legacy", [False, True])
def test_crafted_objects_of_numpy_are_never_built(legacy, tmp_path, torch):
  dtype = Dtype()
  scalar = Call(np._core.multiarray.scalar, dtype, b"\x01" * 8)
  short = Call(np._core.multiarray.scalar, np.dtype("f8"), b"\x01")
  objects = np.array([1, None], dtype=object)
  given = {"model": {"w": torch.ones(2)}, "x": [dtype, scalar, objects]}
  path = tmp_path / "x.pth"
  torch.save(given, path, _use_new_zipfile_serialization=not legacy)
  assert list(weights.read(path).arrays) == ["w"]
  torch.save(given | {"x": short}, path)
  with pytest.raises(UserError, match=r"x\.pth is truncated or broken"):
    weights.read(path)


def test_objects_of_numpy_are_refused(tmp_path):
  marker = tmp_path / "executed"
  call = Call(os.system, f"touch {marker}")
  objects = np.array([call, 1], dtype=object)
  np.savez(tmp_path / "x.npz", w=objects)
  with pytest.raises(UserError, match=r"x\.npz is truncated or broken: Object"):
    weights.read(tmp_path / "x.npz")
  assert not marker.exists()


@pytest.fixture(params=[*WRITERS, "legacy"])
def whole(request, tmp_path):
  """A file of each format, of a kilobyte or two, and what is in it."""
  path = tmp_path / f"x.{request.param}"
  types = (ml_dtypes.bfloat16, np.float64, np.bool_)
  arrays = {f"w{i}": np.ones((3, 5), dtype) for i, dtype in enumerate(types)}
  if request.param == "legacy":
    torch = request.getfixturevalue("torch")
    tensors = {name: torch.ones(3, 5) for name in arrays}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
  else:
    WRITERS[request.param](path, arrays, METADATA)
  return path


def test_truncated_files(whole):
  data = whole.read_bytes()
  step = len(data) // 100
  for length in [*range(0, len(data), step), len(data) - 1]:
    whole.write_bytes(data[:length])
    with pytest.raises(UserError) as error:
      weights.read(whole)
    message = str(error.value)
    assert str(whole) in message
    assert "\n" not in message
    if length > 16:
      assert "is truncated or broken" in message or "no data" in message


def test_damaged_files(whole):
  """Whatever byte is changed, there are arrays or one UserError."""
  data = whole.read_bytes()
  rng = np.random.default_rng(0)
  for place in rng.integers(0, len(data), 100):
    damaged = bytearray(data)
    damaged[place] ^= rng.integers(1, 256)
    whole.write_bytes(damaged)
    try:
      assert weights.read(whole).arrays
    except UserError as error:
      assert str(whole) in str(error)  # noqa: PT017


def safetensors_of(path, header, data):
  """Writes a safetensors file by hand."""
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
  ("change", "size"),
  [
    ({}, 7),
    ({}, 9),
    ({"shape": [3]}, 8),
    ({"data_offsets": [4, 12]}, 12),
    ({"dtype": "F128"}, 8),
    ({"shape": [2**62, 8]}, 8),
    ({"data_offsets": [0, 2**63]}, 8),
    ({"shape": [-2]}, 8),
    ({"shape": None}, 8),
  ],
)
def test_safetensors_that_are_broken(change, size, tmp_path):
  tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
  safetensors_of(tmp_path / "x", {"w": tensor}, bytes(8))
  back = weights.read(tmp_path / "x")
  check_equal(back.arrays, {"w": np.zeros(2, "f")})
  assert back.metadata == {}
  safetensors_of(tmp_path / "x", {"w": tensor | change}, bytes(size))
  with pytest.raises(UserError, match=r"x is truncated or broken: .*header"):
    weights.read(tmp_path / "x")


def test_no_arrays_in_safetensors(tmp_path):
  for metadata in ({}, {"__metadata__": {"a": "b"}}):
    safetensors_of(tmp_path / "x", metadata, b"")
    with pytest.raises(UserError, match="x holds no arrays of a backbone's"):
      weights.read(tmp_path / "x")


def test_unreadable_files(tmp_path, monkeypatch):
  writing.npz(tmp_path / "x", {"w": np.ones(2)})

  def refuse(*_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(pathlib.Path, "open", refuse)
  with pytest.raises(UserError, match="x cannot be read: Permission denied"):
    weights.read(tmp_path / "x")


def test_other_files(tmp_path):
  path = tmp_path / "x"
  with pytest.raises(UserError, match=r"x cannot be read .* no such file"):
    weights.read(path)
  with pytest.raises(UserError, match="cannot be read as weights: a folder"):
    weights.read(tmp_path)
  for content in (b"", b"{}", b"version https://git-lfs", b"P", b"\x89PNG\r\n"):
    path.write_bytes(content)
    what = "it is empty" if not content else "it begins with b'"
    with pytest.raises(UserError, match=f"x is no safetensors, .*: {what}"):
      weights.read(path)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a.txt", "a")
  with pytest.raises(UserError, match="is no safetensors, npz or PyTorch"):
    weights.read(path)


@pytest.mark.parametrize(
  "x", [{}, [1], {"epoch": 1}, {"head.mlp.0.w": np.ones(1)}, {1: np.ones(1)}]
)
def test_no_weights(x, save):
  path = save(x)
  with pytest.raises(UserError, match="holds no arrays of a backbone's"):
    weights.read(path)
