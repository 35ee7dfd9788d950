"""Classifiers as StableHLO programs, which run without this package.

A program contains its weights and needs JAX and `flatbuffers`:
`jax.export.deserialize(bytearray(data)).call(images)`. JAX promises to read it
for six months
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
`x.stablehlo.json` beside it holds its SHA-256 and metadata.
"""

import contextlib
import json
import pathlib

import jax
import jax.numpy as jnp
from jax import export

from vit_ssl_jax import files
from vit_ssl_jax.interop import write

PLATFORMS = ("cpu", "cuda", "tpu")


def write_program(path, predict, params, image_size, metadata):
  """Writes (params, images (B, S, S, 3) uint8) -> (B, C) float32 and JSON."""
  data = serialize(predict, params, image_size)
  with files.atomic_write(path) as temporary:
    temporary.write_bytes(data)
    about = {"sha256": write.sha256(temporary), "metadata": metadata}
    text = json.dumps(about, indent=2, sort_keys=True) + "\n"
    files.write(metadata_path(path), text)


def metadata_path(path):
  """x.stablehlo -> x.stablehlo.json."""
  return pathlib.Path(f"{path}.json")


def serialize(predict, params, image_size):
  """Returns a program's bytes, for any number of images."""
  # NumPy arrays belong to no device, so the program runs on any one.
  params = jax.device_get(params)

  def program(images):  # image by image: B is symbolic
    return jax.vmap(lambda image: predict(params, image[None])[0])(images)

  shape = (*export.symbolic_shape("b"), image_size, image_size, 3)
  with without_source_locations():
    exported = export.export(jax.jit(program), platforms=PLATFORMS)(
      jax.ShapeDtypeStruct(shape, jnp.uint8)
    )
  return bytes(exported.serialize())


@contextlib.contextmanager
def without_source_locations():
  """Omits source paths, which name folders of this machine, from programs."""
  limit = jax.config.jax_traceback_in_locations_limit
  jax.config.update("jax_traceback_in_locations_limit", 0)
  try:
    yield
  finally:
    jax.config.update("jax_traceback_in_locations_limit", limit)
