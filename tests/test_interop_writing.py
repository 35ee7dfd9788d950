"""Files of weights as written: the same bytes, whole, and others read them."""

import hashlib
import json
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import weights, writing

TYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.bool_]
TYPES += [np.int8, np.int16, np.int32, np.int64, np.uint8]
WRITERS = [writing.safetensors, writing.npz, writing.pth]
METADATA = {
  "arch": "vit",
  "heads": "12",
  "name": "é \u2028 \U0001f600",
  "text": 'a\n"b"\\ \x01\x7f',
  "source": "of/whom",  # a path, but we wrote it ourselves
  "empty": "",
}
each_writer = pytest.mark.parametrize(
  "write", WRITERS, ids=lambda write: write.__name__
)


@pytest.fixture
def arrays():
  """An array of every type and of several shapes, some of them transposed."""
  made = {}
  for i, dtype in enumerate(TYPES):
    made[f"block.{i}.weight"] = (np.arange(24).reshape(4, 6) % 5).astype(dtype)
  made["turned"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
  made["swapped"] = np.arange(3, dtype=">f4")
  made["scalar"] = np.array(3.5)
  made["none/of.it"] = np.zeros((0, 3), np.float32)
  return made


def check_equal(given, expected):
  assert given.keys() == expected.keys()
  for name, x in expected.items():
    x = x.astype(x.dtype.newbyteorder("<"))
    assert (given[name].dtype, given[name].shape) == (x.dtype, x.shape), name
    np.testing.assert_array_equal(given[name], x, err_msg=name)


def as_torch(torch, x):
  x = np.array(x.astype(x.dtype.newbyteorder("<")), order="C")
  if x.dtype == ml_dtypes.bfloat16:
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(x)


@each_writer
def test_there_and_back(write, arrays, tmp_path):
  path = tmp_path / "x.of_any_name"
  assert write(path, arrays) is None
  back = weights.read(path)
  check_equal(back.arrays, arrays)
  back.metadata.pop("format", None)
  assert (back.metadata, back.entry, back.left_out) == ({}, "", ())
  assert back.format == write.__name__
  assert list(tmp_path.iterdir()) == [path]


@each_writer
def test_metadata(write, arrays, tmp_path):
  write(tmp_path / "x", arrays, METADATA)
  back = weights.read(tmp_path / "x")
  of_format = {"format": "pt"} if write is writing.safetensors else {}
  assert back.metadata == METADATA | of_format
  assert list(back.metadata) == sorted(back.metadata)
  check_equal(back.arrays, arrays)


@each_writer
def test_the_same_bytes(write, arrays, tmp_path):
  write(tmp_path / "x", arrays, METADATA)
  data = (tmp_path / "x").read_bytes()
  turned = dict(reversed(METADATA.items()))
  for _ in range(5):
    write(tmp_path / "x", arrays, turned)
    assert (tmp_path / "x").read_bytes() == data
  write(tmp_path / "x", arrays, turned | {"heads": "3"})
  assert (tmp_path / "x").read_bytes() != data


@each_writer
def test_our_own_names(write, tmp_path):
  names = ["blocks/attn/qkv/kernel", "backbone/norm/scale", "head/mlp/fc1/bias"]
  given = {name: np.full(2, i) for i, name in enumerate(names)}
  write(tmp_path / "x", given)
  check_equal(weights.read(tmp_path / "x").arrays, given)


def test_npz_is_numpys(arrays, tmp_path):
  writing.npz(tmp_path / "x.npz", arrays, METADATA)
  with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
    assert set(file.files) == set(arrays)
    np.testing.assert_array_equal(file["turned"], arrays["turned"])
  np.savez(tmp_path / "y.npz", **{"a/b": np.ones(3), "text": np.array("x")})
  back = weights.read(tmp_path / "y.npz")
  check_equal(back.arrays, {"a/b": np.ones(3)})
  assert back.left_out == ("text",)


def test_as_much_metadata_as_an_npz_can_hold(tmp_path):
  most = zipfile.ZIP_MAX_COMMENT - len('{"a": ""}')
  writing.npz(tmp_path / "x", {"w": np.ones(2)}, {"a": "b" * most})
  assert weights.read(tmp_path / "x").metadata == {"a": "b" * most}
  with pytest.raises(
    UserError, match=r"y cannot hold metadata of 65536 bytes: .* are 65535$"
  ):
    writing.npz(tmp_path / "y", {"w": np.ones(2)}, {"a": "b" * (most + 1)})
  for write in (writing.safetensors, writing.pth):
    write(tmp_path / "x", {"w": np.ones(2)}, {"a": "b" * 10**5})
    assert weights.read(tmp_path / "x").metadata["a"] == "b" * 10**5


def test_safetensors_is_the_librarys(arrays, torch, tmp_path):
  library_torch = pytest.importorskip("safetensors.torch")
  writing.safetensors(tmp_path / "x", arrays, METADATA | {"format": "mine"})
  with safetensors.safe_open(tmp_path / "x", framework="pt") as file:
    assert file.metadata() == METADATA | {"format": "pt"}
    assert set(file.keys()) == set(arrays)
    for name, x in arrays.items():
      assert torch.equal(file.get_tensor(name), as_torch(torch, x)), name
  tensors = {name: as_torch(torch, x) for name, x in arrays.items()}
  library_torch.save_file(tensors, tmp_path / "y", METADATA)
  back = weights.read(tmp_path / "y")
  assert back.metadata == METADATA
  check_equal(back.arrays, arrays)


def test_safetensors_are_aligned_and_sorted(tmp_path):
  path = tmp_path / "x"
  types = (np.int8, ml_dtypes.bfloat16, np.float64, np.float32)
  arrays = {f"{i}": np.ones(3, dtype) for i, dtype in enumerate(types)}
  for length in range(9):
    writing.safetensors(path, arrays, METADATA | {"b": "é" * length})
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    assert size % 8 == 0
    assert "é".encode() in data[: 8 + size]  # as the library would
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    assert list(metadata) == sorted({*METADATA, "b", "format"})
    for name, tensor in header.items():
      begin = 8 + size + tensor["data_offsets"][0]
      assert begin % arrays[name].itemsize == 0, name
    check_equal(weights.read(path).arrays, arrays)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("metadata", [None, METADATA])
def test_torch_opens_what_is_written(
  mmap, weights_only, metadata, arrays, torch, tmp_path
):
  writing.pth(tmp_path / "x.pth", arrays, metadata)
  back = torch.load(tmp_path / "x.pth", weights_only=weights_only, mmap=mmap)
  assert list(back) == list(arrays)
  for name, x in arrays.items():
    want = as_torch(torch, x)
    assert back[name].dtype == want.dtype
    assert torch.equal(back[name], want), name
    assert back[name].numel() == 0 or back[name].data_ptr() % 16 == 0


def test_a_module_loads_what_is_written(torch, tmp_path):
  module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  state = {name: x.numpy() + 1 for name, x in module.state_dict().items()}
  writing.pth(tmp_path / "x.pth", state, METADATA)
  module.load_state_dict(torch.load(tmp_path / "x.pth"), strict=True)
  back = {name: x.numpy() for name, x in module.state_dict().items()}
  check_equal(back, state)


def test_torchs_own_file_has_no_metadata(torch, tmp_path):
  torch.save({"w": torch.ones(2)}, tmp_path / "x.pth")
  assert weights.read(tmp_path / "x.pth").metadata == {}
  with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive:
    archive.writestr("x/extra/metadata.json", '{"a": "b"}')  # as TorchScript's
    archive.writestr("x/metadata.json", "no JSON")
  assert weights.read(tmp_path / "x.pth").metadata == {}


@each_writer
def test_whole_or_not_at_all(write, tmp_path):
  path = tmp_path / "x"
  path.write_text("mine")
  for arrays in ({}, {"w": np.array("text")}, {"w": np.ones(2, complex)}):
    with pytest.raises(UserError, match=r"x (cannot|would) hold"):
      write(path, arrays)
  with pytest.raises(UserError, match="cannot be written: No such file"):
    write(tmp_path / "no" / "x", {"w": np.ones(2)})
  assert path.read_text() == "mine"
  with pytest.raises(UserError, match="cannot be written: it is a folder"):
    write(tmp_path, {"w": np.ones(2)})
  assert list(tmp_path.iterdir()) == [path]
  write(path, {"w": np.ones(2)})
  check_equal(weights.read(path).arrays, {"w": np.ones(2)})
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  ("error", "raised", "message"),
  [
    (OSError(28, "No space left"), UserError, "x cannot .*: No space left$"),
    (RuntimeError("stopped"), RuntimeError, "stopped"),
  ],
)
def test_nothing_is_left_of_a_write_that_fails(
  error, raised, message, tmp_path
):
  path = tmp_path / "x"
  path.write_text("mine")

  def fail():
    with writing.opened(path) as file:
      file.write(b"half")
      raise error

  with pytest.raises(raised, match=message):
    fail()
  assert list(tmp_path.iterdir()) == [path]
  assert path.read_text() == "mine"


def test_sha256(tmp_path):
  (tmp_path / "x").write_bytes(b"abc")
  digest = writing.sha256(tmp_path / "x")
  assert digest == hashlib.sha256(b"abc").hexdigest()
  assert digest.startswith("ba7816bf")
  with pytest.raises(UserError, match="no cannot be read: No such file"):
    writing.sha256(tmp_path / "no")


def test_without_torch(tmp_path, monkeypatch):
  writing.pth(tmp_path / "x.pth", {"w": np.ones(2)})
  monkeypatch.setitem(sys.modules, "torch", None)
  for use in (
    lambda: weights.read(tmp_path / "x.pth"),
    lambda: writing.pth(tmp_path / "y.pth", {"w": np.ones(2)}),
  ):
    with pytest.raises(UserError, match=r"pip install 'vit-ssl-jax\[torch\]'"):
      use()
  assert not (tmp_path / "y.pth").exists()
  for write in (writing.safetensors, writing.npz):
    write(tmp_path / "x", {"w": np.ones(2)})
    assert "w" in weights.read(tmp_path / "x").arrays
