"""Classifiers as programs of StableHLO, which run without this package.

They have their weights inside and need JAX and its optional `flatbuffers`:
`jax.export.deserialize(bytearray(data)).call(images)`. For six months after a
program was written JAX promises to read it
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).

Beside `x.stablehlo` lies `x.stablehlo.json`: the program's SHA-256, without
which single bits that have changed would crash JAX's reader, and metadata.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vit_ssl_jax import files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import writing

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"


def write(path, predict, params, image_size, metadata=None):
  """Writes a program, for any number of images, of a function.

  The same function, parameters and metadata give the same bytes.

  Args:
    path: x.stablehlo, for one device of PLATFORMS.
    predict: (params, images (B, S, S, 3) uint8) -> (B, C) float32. It is given
      one image and vectorised over them: its own code need not be fit for a
      number of images that is unknown.
    params: a tree of arrays, which become the program's constants.
    image_size: S.
    metadata: dict from text to text, or None.

  Raises:
    ValueError: predict returns something else.
  """
  path = pathlib.Path(path)
  data = serialize(predict, params, image_size)
  with files.atomic_write(path) as temporary:
    temporary.write_bytes(data)
    about = {"sha256": writing.sha256(temporary), "metadata": metadata or {}}
    text = json.dumps(about, indent=2, sort_keys=True) + "\n"
    files.write(beside(path), text)


def beside(path):
  """The JSON file of a program."""
  return pathlib.Path(f"{path}.json")


def serialize(predict, params, image_size):
  """The bytes of a program; arguments are those of `write`."""
  # In NumPy they belong to no device, and the program to no number of them.
  params = jax.device_get(params)

  def program(images):
    return jax.vmap(lambda image: predict(params, image[None])[0])(images)

  shape = (*export.symbolic_shape("b"), image_size, image_size, 3)
  with without_source_locations():
    exported = export.export(jax.jit(program), platforms=PLATFORMS)(
      jax.ShapeDtypeStruct(shape, jnp.uint8)
    )
  check_signature(exported)
  return bytes(exported.serialize())


@contextlib.contextmanager
def without_source_locations():
  """Keeps the paths of source files out of what JAX lowers."""
  limit = jax.config.jax_traceback_in_locations_limit
  jax.config.update("jax_traceback_in_locations_limit", 0)
  try:
    yield
  finally:
    jax.config.update("jax_traceback_in_locations_limit", limit)


def check_signature(exported):
  """Checks that a `jax.export.Exported` is a program as `serialize` makes it.

  Returns:
    S and C.

  Raises:
    ValueError: it takes or gives something else.
  """
  takes, gives = exported.in_avals, exported.out_avals
  found = [(str(x.dtype), *map(str, x.shape)) for x in (*takes, *gives)]
  side, outputs = takes[0].shape[1], gives[0].shape[-1]
  wanted = [("uint8", "b", str(side), str(side), "3")]
  wanted += [("float32", "b", str(outputs))]
  trees = jax.tree.structure(((0,), {})), jax.tree.structure(0)
  if found != wanted or (exported.in_tree, exported.out_tree) != trees:
    raise ValueError(
      f"it makes {gives} of {takes}, and not float32[b,C] of uint8[b,S,S,3]"
    )
  return side, outputs


def is_program(path):
  """Whether a file is a program, by its name."""
  return pathlib.Path(path).suffix == SUFFIX


@dataclasses.dataclass(frozen=True)
class Program:
  """A function of images.

  Attributes:
    call: images (b, S, S, 3) uint8 -> (b, C) float32; it is compiled for every
      b that it meets.
    image_size: S.
    num_outputs: C.
    metadata: what was given to `write`.
  """

  call: Callable[[np.ndarray], jax.Array]
  image_size: int
  num_outputs: int
  metadata: dict[str, str]


def read(path):
  """Reads a program of `write`.

  Reading executes nothing of it. What a program does when it is called is as
  trustworthy as who made it.

  Args:
    path: x.stablehlo.

  Returns:
    Program.

  Raises:
    UserError: no such file, no JSON beside it, truncated or broken, of a
      version of JAX that does not go with this one, or for other platforms.
  """
  path = pathlib.Path(path)
  about = files.read_json(beside(path))
  if not isinstance(about, dict) or about.get("sha256") != writing.sha256(path):
    raise UserError(
      f"{path} is truncated or broken: its bytes are not those that"
      f" {beside(path).name} names"
    )
  try:
    exported = export.deserialize(bytearray(path.read_bytes()))
    image_size, num_outputs = check_signature(exported)
    call = jax.jit(exported.call)
    # What is too new for JAX, or for another platform, it meets here, and not
    # in the first call.
    call.lower(jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.uint8))
  except Exception as error:  # JAX raises many kinds
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    raise UserError(
      f"{path} does not go with JAX {jax.__version__} on"
      f" {jax.default_backend()}, and has to be exported again: {reason}"
    ) from error
  return Program(call, image_size, num_outputs, about.get("metadata", {}))
