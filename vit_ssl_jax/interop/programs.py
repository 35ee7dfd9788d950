"""Classifiers as programs of StableHLO, which run without this package.

They have their weights inside and need JAX and its optional `flatbuffers`:
`jax.export.deserialize(bytearray(data)).call(images)`. For six months after a
program was written JAX promises to read it
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).

A file holds what `jax.export` serialises, a FlatBuffer, with a header put in
behind the first four bytes. Those are the place of its root table, and every
other place in it is relative, so that JAX passes over the header:

  uint32    the place of the root, moved
  4 bytes   MARK, where FlatBuffers have their identifiers
  uint32    the length of the metadata
  32 bytes  SHA-256 of all the bytes before and after these
  ...       the metadata, in JSON, from text to text

Numbers are little-endian.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import struct
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vit_ssl_jax.cli import UserError

PLATFORMS = ("cpu", "cuda", "tpu")
MARK = b"vsj1"
HEAD = struct.Struct("<I4sI")  # what comes before the digest
ROOT = struct.Struct("<I")


def serialize(predict, params, image_size, metadata=None):
  """Makes a program, for any number of images, of a function.

  The same function, parameters and metadata give the same bytes.

  Args:
    predict: (params, images (B, S, S, 3) uint8) -> (B, C) float32. It is given
      one image and vectorised over them: its own code need not be fit for a
      number of images that is unknown.
    params: a tree of arrays, which become the program's constants.
    image_size: S.
    metadata: dict from text to text, or None.

  Returns:
    The bytes of a file, for one device of PLATFORMS.

  Raises:
    ValueError: predict returns something else.
  """
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
  return with_header(bytes(exported.serialize()), metadata or {})


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
  if exported.nr_devices != 1:
    raise ValueError(f"it is for {exported.nr_devices} devices at once")
  return side, outputs


def with_header(program, metadata):
  """Puts our header into what JAX serialised."""
  text = json.dumps(metadata, sort_keys=True).encode()
  text += b" " * (-len(text) % 8)  # so that nothing loses its alignment
  (root,) = ROOT.unpack_from(program)
  root += HEAD.size + hashlib.sha256().digest_size + len(text) - ROOT.size
  head = HEAD.pack(root, MARK, len(text))
  body = text + program[ROOT.size :]
  return head + hashlib.sha256(head + body).digest() + body


def is_program(path):
  """Whether there is a file that begins as those of `serialize` do."""
  try:
    with open(path, "rb") as file:
      return begins_program(file.read(HEAD.size))
  except OSError:
    return False


def begins_program(start):
  return start[ROOT.size :].startswith(MARK)


def read(path):
  """Reads a file of `serialize`.

  Reading executes nothing of it. What a program does when it is called is as
  trustworthy as who made it.

  Args:
    path: the file.

  Returns:
    Program.

  Raises:
    UserError: no such file, not one of `serialize`, truncated or broken, of a
      version of JAX that does not go with this one, or for other platforms.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    what = "a folder" if path.is_dir() else "no such file"
    raise UserError(f"{path} cannot be read as a program: {what}")
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from error
  if not begins_program(data):
    begin = f"it begins with {data[:16]!r}" if data else "it is empty"
    raise UserError(f"{path} is no program that this package wrote: {begin}")
  metadata = checked_metadata(path, data)
  try:
    exported = export.deserialize(bytearray(data))
    image_size, num_outputs = check_signature(exported)
    platforms = tuple(exported.platforms)
    here = export.default_export_platform()
    call = jax.jit(exported.call)
    if here in platforms:
      # What is too new for JAX it meets here, and not in the first call.
      shape = (1, image_size, image_size, 3)
      call.lower(jax.ShapeDtypeStruct(shape, jnp.uint8))
  except Exception as error:  # JAX raises many kinds
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    raise UserError(
      f"{path} does not go with JAX {jax.__version__}, and has to be exported"
      f" again: {reason}"
    ) from error
  if here not in platforms:
    raise UserError(
      f"{path} is a program for {', '.join(platforms)}, and this is {here}"
    )
  return Program(call, image_size, num_outputs, platforms, metadata)


def checked_metadata(path, data):
  """The metadata of a file's bytes, which are compared with their digest.

  Without that, single bits that have changed crash JAX's reader.

  Raises:
    UserError: the bytes are not those that were written.
  """
  body = HEAD.size + hashlib.sha256().digest_size
  digest = hashlib.sha256(data[: HEAD.size] + data[body:]).digest()
  if data[HEAD.size : body] != digest:
    raise UserError(
      f"{path} is truncated or broken: its bytes are not those that were"
      " written"
    )
  _, _, length = HEAD.unpack_from(data)
  return json.loads(data[body : body + length])


@dataclasses.dataclass(frozen=True)
class Program:
  """A function of images.

  Attributes:
    call: images (b, S, S, 3) uint8 -> (b, C) float32; it is compiled for every
      b that it meets.
    image_size: S.
    num_outputs: C.
    platforms: what it runs on, of PLATFORMS.
    metadata: what was given to `serialize`.
  """

  call: Callable[[np.ndarray], jax.Array]
  image_size: int
  num_outputs: int
  platforms: tuple[str, ...]
  metadata: dict[str, str]
