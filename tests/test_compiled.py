"""Steps and kernels compiled for accelerators that need not be present."""

import importlib.metadata
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from vit_ssl_jax import kernels
from vit_ssl_jax.benchmark import program, topologies
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.kernels import dispatch
from vit_ssl_jax.parallel import mesh as meshes

TOPOLOGIES = {"v5e": "2x4", "v5p": "2x2x2", "v6e": "2x4"}


def attend(q, k, v):
  return kernels.attention(q, k, v)


def shift(x, *_):
  x = kernels.to_windows(x, 4, 2)
  return kernels.from_windows(jnp.sin(x), 8, 8, 4, 2)


@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(
  ("function", "shape"),
  [
    (attend, (256, 17, 2, 16)),
    # Blocks of 8 views with 4 left over, and a block of 1.
    (attend, (24, 65, 12, 16)),
    (attend, (2, 17, 12, 16)),
    (shift, (256, 8, 8, 16)),
  ],
)
def test_kernels_compile(function, shape, chip, monkeypatch):
  """Forwards and backwards, split over a mesh of two chips."""
  pytest.importorskip("libtpu", reason='needs pip install "jax[tpu]"')
  devices = topologies.devices_of(chip, TOPOLOGIES[chip])[:2]
  mesh = meshes.mesh_of((2, 1), devices)
  split = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp")))
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split)

  def loss(*given):
    return jnp.sum(function(*given).astype(jnp.float32))

  monkeypatch.setattr(dispatch, "policy", dispatch.Policy("unchecked"))
  with jax.set_mesh(mesh):
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    text = gradients.lower(x, x, x).compile().as_text()
  assert "tpu_custom_call" in text
  assert "all-gather" not in text


SMALL = ("--dataset=digits", "--batch_size=256", "--config.model.depth=1")


@pytest.mark.parametrize(
  ("arch", "stage", "options"),
  [
    ("vit", "finetune", [*SMALL, "--config.augment.autoaugment="]),  # seconds
    *(
      pytest.param(arch, stage, [], marks=pytest.mark.tpu)  # the paper's batch
      for arch in ("vit", "swin", "cait")
      for stage in ("pretrain", "finetune")
    ),
  ],
)
def test_a_step_is_compiled_for_eight_chips(arch, stage, options):
  """In a process of its own, for compilers' flags stay."""
  pytest.importorskip("libtpu", reason='needs pip install "jax[tpu]"')
  command = [sys.executable, "-m", "vit_ssl_jax.benchmark", "--json"]
  command += ["--compile_for=v5e:2x4", "--chips=8"]
  done = subprocess.run(
    [*command, f"--arch={arch}", f"--stage={stage}", *options],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  figures = json.loads(done.stdout.splitlines()[-1])
  assert figures["fits"]
  assert figures["link_bytes"] > 0
  assert figures["estimated_ms"] > 0
  assert figures["compile_seconds"] > 0


def test_a_pallas_kernel_is_timed_by_its_loops():
  """A grid of 3 x 2, and a loop of 5 inside."""

  def kernel(source, target):
    def body(i, _):
      target[...] = source[...] * i
      return 0

    jax.lax.fori_loop(0, 5, body, 0)

  def double(x):
    block = pl.BlockSpec((8, 128), lambda i, j: (i, j))
    call = pl.pallas_call(
      kernel, x, grid=(3, 2), in_specs=[block], out_specs=block, name="double"
    )
    return jnp.sin(call(x))

  x = jax.ShapeDtypeStruct((24, 256), jnp.float32)
  jaxpr = jax.make_jaxpr(jax.jit(double))(x).jaxpr
  assert dict(program.kernel_loops(jaxpr)) == {
    ("double", ((24, 256),)): (6, 5),
  }


def test_loops_of_a_compiled_program_count_as_often_as_they_run():
  """A matrix of 4 MiB is read in each of 7 trips, and nothing else is large."""

  def loop(x, y):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ y), None), x, length=7)[0]

  x, y = jnp.ones((1, 1024)), jnp.ones((1024, 1024))
  computations = program.parse(jax.jit(loop).lower(x, y).compile().as_text())
  read = program.gpu_bytes(computations) / y.nbytes
  assert read == pytest.approx(7, rel=0.1)


def test_slices_and_updates_in_place_count_their_part_alone():
  """Each row is read once and written once, into an array of zeros."""

  def rows(x):
    return jax.lax.scan(lambda i, row: (i, jnp.sin(row)), 0, x)[1]

  x = jnp.ones((64, 4096))
  text = jax.jit(rows).lower(x).compile().as_text()
  moved = program.gpu_bytes(program.parse(text)) / x.nbytes
  assert moved == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("v4", "possible are v5e, v5p, v6e, h100"),
    ("v5e:2by4", "topology such as v5e:2x4"),
  ],
)
def test_unknown_targets(text, words):
  with pytest.raises(UserError, match=words):
    topologies.find(text, 1)


def test_a_missing_compiler_is_named(monkeypatch):
  def distribution(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "distribution", distribution)
  with pytest.raises(UserError, match=r"pip install 'jax\[cuda13\]'"):
    topologies.compiler("h100")
