"""What the benchmark counts, and that it measures the stages' own steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain as recipe
from vit_ssl_jax import benchmark


def flops(function, *shapes):
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return benchmark.count_flops(jax.make_jaxpr(function)(*inputs).jaxpr)


def test_flops_of_products():
  assert flops(jnp.dot, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
  batched = "bnd,bmd->bnm"
  product = lambda x, y: jnp.einsum(batched, x, y)  # noqa: E731
  assert flops(product, (2, 3, 4), (2, 5, 4)) == 2 * 2 * 3 * 5 * 4

  def scanned(x):
    return jax.lax.scan(lambda y, _: (jax.jit(jnp.dot)(y, y), None), x, None, 7)

  assert flops(scanned, (3, 3)) == 7 * 2 * 27


def test_flops_of_the_papers_vit():
  """By hand: the student's 2 · 65 + 8 · 17 tokens, the teacher's 2 · 65."""
  config = recipe.get_config("vit,cifar10")
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3, batch_size=2)
  init, step = benchmark.stage(config, augmented=False)
  batch = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)}
  traced = jax.jit(step).trace(jax.eval_shape(init), batch)
  found = benchmark.count_flops(traced.jaxpr.jaxpr) / 2

  def forward(tokens):
    """Of one view: patches, nine blocks; two products of attention each."""
    D, patches = 192, tokens - 1
    block = 2 * tokens * (4 * D * D + 2 * D * 2 * D) + 4 * tokens * tokens * D
    return 2 * patches * 48 * D + 9 * block

  head = 2 * (192 * 512 + 512 * 512 + 512 * 256 + 256 * 1024)
  student = 2 * forward(65) + 8 * forward(17) + 10 * head
  teacher = 2 * forward(65) + 2 * head
  # Backwards is twice as much, but the images themselves have no gradient.
  assert found == pytest.approx(3 * student + teacher, rel=0.02)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_figures(stage, make_tiny):
  config = make_tiny(stage, "vit")
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  found = benchmark.measure(config, steps=2, rounds=2)
  assert found["images_per_second"] == pytest.approx(16 / found["step_seconds"])
  assert found["peak_share"] is None  # of a CPU
  assert found["devices"] == 2
  for key in ("compile_seconds", "model_flops", "memory_bytes"):
    assert found[key] > 0
  json.dumps(found)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--steps=0"], "--steps=0 has to be at least 1"),
    (["--dataset=mnist"], "DATASET of cifar10"),
    (["--batch_size=3"], "not a multiple of the 2 devices"),
    (["--arch=resnet"], "invalid choice"),
  ],
)
def test_arguments_that_make_no_sense(arguments, words, capsys):
  with pytest.raises(SystemExit) as stop:
    benchmark.main(arguments)
  jax.config.update("jax_enable_compilation_cache", True)
  assert stop.value.code == 2
  assert words in capsys.readouterr().err
