"""What is compiled for accelerators that are not here."""

import importlib.metadata
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from vit_ssl_jax.benchmark import program, topologies
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import kernels, windows
from vit_ssl_jax.parallel import mesh as meshes

TOPOLOGIES = {"v5e": "2x4", "v5p": "2x2x2", "v6e": "2x4"}


def attend(q, k, v):
  return kernels.attention(q, k, v, scale=0.25)


def attend_itself(qkv, *_):
  return kernels.self_attention(qkv, 12, scale=0.25)


def shift(x, *_):
  x = windows.to_windows(x, 4, 2, fast=True)
  return windows.from_windows(jnp.sin(x), 8, 8, 4, 2, fast=True)


@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(
  ("function", "shape"),
  [
    (attend, (256, 17, 2, 16)),
    # Blocks of 8 views with 4 left over, and a block of 1.
    (attend_itself, (24, 65, 576)),
    (attend_itself, (2, 17, 576)),
    (shift, (256, 8, 8, 16)),
  ],
)
def test_kernels_compile(function, shape, chip):
  """Forwards and backwards, split over a mesh of two chips."""
  pytest.importorskip("libtpu", reason='needs pip install "jax[tpu]"')
  devices = topologies.devices_of(chip, TOPOLOGIES[chip])[:2]
  mesh = meshes.mesh_of((2, 1), devices)
  split = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp")))
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split)

  def loss(*given):
    return jnp.sum(function(*given).astype(jnp.float32))

  with jax.set_mesh(mesh):
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    text = gradients.lower(x, x, x).compile().as_text()
  assert "tpu_custom_call" in text
  assert "all-gather" not in text


def for_eight_chips(*options):
  """What the command says of a step on eight v5e chips."""
  pytest.importorskip("libtpu", reason='needs pip install "jax[tpu]"')
  command = [sys.executable, "-m", "vit_ssl_jax.benchmark", "--json"]
  command += ["--compile_for=v5e:2x4", "--chips=8", "--parallel=data"]
  done = subprocess.run(
    [*command, *options], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_the_command_compiles_a_step():
  """One block and no AutoAugment: seconds."""
  found = for_eight_chips(
    *("--arch=vit", "--stage=finetune", "--dataset=digits", "--batch_size=256"),
    *("--config.model.depth=1", "--config.augment.autoaugment="),
  )
  assert found["fits"]
  assert found["link_bytes"] > 0
  parts = found["parts_ms"]
  assert min(parts[x] for x in ("attention", "MLP", "update")) > 0
  assert found["estimated_ms"] == pytest.approx(sum(parts.values()))


@pytest.mark.tpu
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("arch", ["vit", "swin", "cait"])
def test_step_fits_on_eight_chips(arch, stage):
  """At the paper's batch."""
  found = for_eight_chips(f"--arch={arch}", f"--stage={stage}")
  assert found["fits"]
  assert found["estimated_ms"] > 0
  assert found["link_bytes"] > 0


PROGRAM = """
%below (t: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(9)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8] fusion(%t), metadata={op_name="a/mlp/b"}, c={"estimated_cycles":"100"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%p), condition=%below, body=%body
  %y = f32[8] all-reduce(%w), replica_groups={{0,1}}, c={"estimated_cycles":"600"}
}
"""  # noqa: E501


def test_a_loop_counts_as_often_as_it_runs(tmp_path):
  seconds = program.tpu_seconds(tmp_path, clock=1e6, bandwidth=1e9)
  found = program.figures(PROGRAM, seconds, chips=2)
  assert found["estimated_ms"] == pytest.approx(1.5)
  assert found["parts_ms"] == pytest.approx({"MLP": 0.9, "collectives": 0.6})
  assert found["link_bytes"] == 2 * 32 // 2


def test_lookups_have_no_time_and_are_counted(tmp_path):
  line = "  %gather_fusion.2 = s32[8] fusion(%p), kind=kCustom, calls=%c"
  seconds = program.tpu_seconds(tmp_path, clock=1e6, bandwidth=1e9)
  text = PROGRAM.replace("  %x =", f"{line}\n  %x =")
  found = program.figures(text, seconds, chips=2)
  assert found["lookups"] == 9
  assert found["estimated_ms"] == pytest.approx(1.5)


def test_a_kernel_takes_its_instructions_or_its_bytes(tmp_path):
  line = (
    '  %move_kernel_50x0.2 = f32[250]{0} custom-call(%x), "tpu_custom_call"'
  )
  file = tmp_path / "17-move_kernel_50x0.2-final_bundles.txt"
  file.write_text("  0x1 : { %1 = start }\n  0x2 : > { %2 = move }\n")
  seconds = program.tpu_seconds(tmp_path, clock=1e6, bandwidth=1e9)
  assert seconds(line) == pytest.approx(51e-6)
  seconds = program.tpu_seconds(tmp_path, clock=1e6, bandwidth=1e6)
  assert seconds(line) == pytest.approx(2000e-6)


GPU_PROGRAM = """
%update (p: f32[100,8], q: f32[1,8]) -> f32[100,8] {
  %p = f32[100,8] parameter(0)
  %q = f32[1,8] parameter(1)
  ROOT %u = f32[100,8] dynamic-update-slice(%p, %q)
}

%convert (r: f32[100,8]) -> bf16[2,8] {
  %r = f32[100,8] parameter(0)
  %s = f32[2,8] slice(%r)
  ROOT %t = bf16[2,8] convert(%s)
}

ENTRY %main {
  %x = f32[100,8] parameter(0)
  %y = f32[1,8] fusion(%x, %x), kind=kLoop
  %z = f32[100,8] fusion(%x, %y), kind=kLoop, calls=%update
  %w = bf16[2,8] fusion(%x), kind=kLoop, calls=%convert
  %product = (bf16[8,8], s8[4096]) custom-call(%y, %y), target="cublas"
}
"""


def test_a_gpu_reads_and_writes_what_it_needs_to():
  """Updates are in place, slices read a part, cuBLAS' space is its own."""
  seconds = program.gpu_seconds(GPU_PROGRAM, bandwidth=1.0)
  found = [seconds(x) for x, _ in program.operations(GPU_PROGRAM)]
  assert found == [0, 2 * 3200 + 32, 2 * 32, 64 + 32, 128 + 2 * 32]


def test_flops_are_those_of_the_products():
  def f(x, y):
    return jax.lax.scan(lambda c, _: (c @ y, None), x, length=3)[0]

  x, y = jnp.ones((2, 4)), jnp.ones((4, 4))
  assert program.flops(jax.make_jaxpr(f)(x, y).jaxpr) == 3 * 2 * 2 * 4 * 4


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("v4", "possible are v5e, v5p, v6e, h100"),
    ("v5e:2by4", "a topology looks like v5e:2x4"),
  ],
)
def test_unknown_targets(text, words):
  with pytest.raises(UserError, match=words):
    topologies.find(text, 1)


def test_a_compiler_that_is_missing(monkeypatch):
  monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
  with pytest.raises(UserError, match=r"pip install 'jax\[cuda13\]'"):
    topologies.compiler("h100")


def not_installed(name):
  raise importlib.metadata.PackageNotFoundError(name)
