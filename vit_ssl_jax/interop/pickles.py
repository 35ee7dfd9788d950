"""PyTorch's files, read without PyTorch and without executing anything.

A `.pth` is a pickle, and a pickle is a program: it names functions and calls
them. Here the names it may use are listed, no call is made while it is read
(`Inert` stands for each), and then the listed ones, all of them ours, are
worked out. The layouts are those of `torch.save` in torch 2, `torch/_utils.py`
and `torch/serialization.py`: a zip file since torch 1.6, a chain of pickles
and raw storages before. Only little-endian files are read.
"""

import functools
import io
import pathlib
import pickle
import pickletools
import struct
import zipfile

import ml_dtypes
import numpy as np

from vit_ssl_jax.cli import UserError

STORAGES = {
  "torch.FloatStorage": np.dtype(np.float32),
  "torch.DoubleStorage": np.dtype(np.float64),
  "torch.HalfStorage": np.dtype(np.float16),
  "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "torch.LongStorage": np.dtype(np.int64),
  "torch.IntStorage": np.dtype(np.int32),
  "torch.ShortStorage": np.dtype(np.int16),
  "torch.CharStorage": np.dtype(np.int8),
  "torch.ByteStorage": np.dtype(np.uint8),
  "torch.BoolStorage": np.dtype(np.bool_),
}
MAGIC = 0x1950A86A20F9469CFC6C  # what the older format begins with
PICKLE = "/data.pkl"  # in a zip file, after its root


def read(path):
  """Reads what `torch.save` or `pickle.dump` wrote.

  Args:
    path: a file that begins as a zip file or a pickle does.

  Returns:
    Nested dicts, lists, tuples and plain values, as saved, with tensors as
    NumPy arrays of their dtype: views, read-only, of the storages, which they
    share if they did. A Namespace is a dict, a torch.dtype or device a string.

  Raises:
    UserError: the file would execute something, or it is broken.
  """
  try:
    with pathlib.Path(path).open("rb") as file:
      zipped = file.read(2) == b"PK"
      file.seek(0)
      return read_zip(path) if zipped else read_chain(file, path)
  except UserError:
    raise
  except Exception as error:  # a broken pickle may raise anything at all
    raise broken(path, error) from error


def broken(path, error):
  """The UserError, one sentence, for what a library says of a file."""
  text = " ".join(str(error).split()) or type(error).__name__
  return UserError(f"{path} is truncated or broken: {text}")


def read_zip(path):
  """The format since torch 1.6: ROOT/data.pkl and ROOT/data/KEY."""
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    (root,) = (x.split("/")[0] for x in names if x[x.find("/") :] == PICKLE)
    order = f"{root}/byteorder"
    if order in names and archive.read(order) != b"little":
      raise ValueError("it is not little-endian")
    unpickler = Unpickler(io.BytesIO(archive.read(root + PICKLE)), path)

    @functools.cache
    def storage(key):
      return archive.read(f"{root}/data/{key}")

    return resolve(unpickler.load(), storage, {})


def read_chain(file, path):
  """The format before torch 1.6, or a single pickle of anything."""
  first = resolve(Unpickler(file, path).load(), None, {})
  if not (isinstance(first, int) and first == MAGIC):
    return first
  version, system = (Unpickler(file, path).load() for _ in range(2))
  if version != 1001 or not system["little_endian"]:
    raise ValueError(f"it is of version {version}, or not little-endian")
  unpickler = Unpickler(file, path)
  tree = unpickler.load()
  storages = {}
  for key in Unpickler(file, path).load():
    (count,) = struct.unpack("<q", file.read(8))
    size = count * unpickler.dtypes[key].itemsize
    storages[key] = file.read(size) if count >= 0 else b""
  return resolve(tree, storages.__getitem__, {})


def resolve(x, storage, seen):
  """Works out, with functions of ours, what an Unpickler has left.

  Args:
    x: what it returned, or a part of that.
    storage: the key of a storage -> its bytes.
    seen: what has been worked out, by id: objects may be shared, or cyclic.
  """
  if id(x) in seen:
    return seen[id(x)]
  inner = functools.partial(resolve, storage=storage, seen=seen)
  if isinstance(x, dict):
    made = seen[id(x)] = {}
    made.update((inner(key), inner(value)) for key, value in x.items())
  elif isinstance(x, list):
    made = seen[id(x)] = []
    made.extend(map(inner, x))
  elif isinstance(x, tuple):
    made = tuple(map(inner, x))
  elif isinstance(x, Storage):
    made = (storage(x.key), x.dtype, x.count)
  elif isinstance(x, Inert):
    made = GLOBALS[x.name](inner(x.args), inner(x.state))
  elif isinstance(x, type):
    made = x.name
  else:
    made = x
  seen[id(x)] = made
  return made


def tensor(args, _):
  """`torch._utils._rebuild_tensor_v2`: an array that views its storage."""
  (data, dtype, count), offset, shape, strides, _, _, *bits = args
  numbers = (count, offset, *shape, *strides)
  if any(type(n) is not int or n < 0 for n in numbers) or any(bits):
    raise ValueError("a tensor is not a plain one")
  # In Python's integers, which do not overflow as NumPy's own check does.
  last = offset + sum(
    (n - 1) * step for n, step in zip(shape, strides, strict=True)
  )
  if (0 not in shape and last >= count) or count * dtype.itemsize > len(data):
    raise ValueError("a tensor lies outside of its storage")
  steps = [step * dtype.itemsize for step in strides]
  if 0 in shape:
    return np.zeros(shape, dtype)
  return np.ndarray(shape, dtype, data, offset * dtype.itemsize, steps)


def numpy_dtype(args, state):
  """`numpy.dtype`, of numbers only: a type of objects would hold calls."""
  code, byte_order = args[0], state[1] if state else "="
  dtype = np.dtype(code) if isinstance(code, str) else None
  if dtype is None or dtype.kind not in "biufc":
    raise ValueError(f"an array of NumPy holds no numbers but {code!r}")
  return dtype.newbyteorder(byte_order)


def numpy_array(_, state):
  """`numpy.core.multiarray._reconstruct`, and what is set afterwards."""
  _, shape, dtype, fortran, data = state
  return np.frombuffer(data, dtype).reshape(shape, order="CF"[fortran])


def numpy_scalar(args, _):
  """`numpy.core.multiarray.scalar`."""
  dtype, data = args
  return np.frombuffer(data, dtype, count=1)[0]


def latin1(args, _):
  """`_codecs.encode`: how bytes are written by pickle's protocol 2."""
  return args[0].encode("latin1")


def first(args, _):
  """What a call is given first: a parameter's tensor, the name of a device."""
  return args[0]


def namespace(_, state):
  return dict(state)


# Every name that a file may use, and what stands for a call of it: no call of
# torch, argparse or NumPy. A name without one is a value: its own name.
GLOBALS = dict.fromkeys(STORAGES) | {
  "torch._utils._rebuild_tensor_v2": tensor,
  "torch._utils._rebuild_parameter": first,
  "torch.Size": first,
  "torch.device": first,
  "argparse.Namespace": namespace,
  "_codecs.encode": latin1,
  "numpy.dtype": numpy_dtype,
  "numpy.ndarray": None,
}
GLOBALS |= {f"torch.{dtype.name}": None for dtype in STORAGES.values()}
for module in ("numpy.core", "numpy._core"):
  GLOBALS[f"{module}.multiarray._reconstruct"] = numpy_array
  GLOBALS[f"{module}.multiarray.scalar"] = numpy_scalar


class Inert:
  """What a file calls, with what: the call is not made."""

  name = ""
  args = ()
  state = None

  def __init__(self, *args):
    self.args = args

  def __setstate__(self, state):
    self.state = state


class Storage(Inert):
  """The place of a tensor's numbers; its type is checked when it is met."""

  def __init__(self, dtype, key, count):
    self.dtype, self.key, self.count = dtype, key, count


class Mapping(dict):
  """For an OrderedDict, whose attributes, such as _metadata, are dropped."""

  name = "collections.OrderedDict"

  def __setstate__(self, state):
    pass


class Unpickler(pickle.Unpickler):
  """Unpickles into builtins, Inert, Storage and Mapping, and nothing else."""

  def __init__(self, file, path):
    super().__init__(file, encoding="utf-8")
    self.file = file
    self.path = path
    self.dtypes = {}

  def load(self):
    # Python's own reserves memory up to any place that a file notes down.
    start = self.file.tell()
    for opcode, arg, place in pickletools.genops(self.file):
      if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and arg > place:
        raise ValueError(f"it notes down place {arg} at byte {place}")
    self.file.seek(start)
    return super().load()

  def find_class(self, module, name):
    full = f"{module}.{name}"
    if full == Mapping.name:
      return Mapping
    if full not in GLOBALS:
      raise UserError(
        f"{self.path} would execute {full}: only arrays and plain values are"
        " read (of a model in PyTorch, its state_dict())"
      )
    # A type of its own for each, so that a file can spoil none of ours.
    return type(name, (Inert,), {"name": full})

  def persistent_load(self, pid):
    kind, storage_type, key, _, count, *view = pid
    if kind != "storage" or any(x is not None for x in view):
      raise ValueError("it holds something other than storages of tensors")
    dtype = self.dtypes[key] = STORAGES[storage_type.name]
    return Storage(dtype, key, count)
