"""What the benchmark counts, and that it measures the stages' own steps."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain as recipe
from vit_ssl_jax import benchmark
from vit_ssl_jax.benchmark import __main__ as command, measuring, steps


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
  traced = jax.jit(step).trace(jax.eval_shape(init), steps.batch_shapes(config))
  found = benchmark.count_flops(traced.jaxpr.jaxpr) / 2

  def forward(tokens):
    """Of one view: patches, nine blocks; two products of attention each."""
    D, patches = 192, tokens - 1
    block = 2 * tokens * (4 * D * D + 2 * D * 2 * D) + 4 * tokens * tokens * D
    # In the last one only keys and values are those of all tokens.
    last = 2 * (tokens * 2 + 2 + 2 * 2) * D * D + 4 * tokens * D
    return 2 * patches * 48 * D + 8 * block + last

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
  streamed = found["step_seconds_streamed"] / found["step_seconds"]
  assert found["streaming_share"] == pytest.approx(100 * (streamed - 1))
  assert {len(x) for x in found["rounds"].values()} == {2}
  for key in ("compile_seconds", "model_flops", "memory_bytes"):
    assert found[key] > 0
  program = found["program"]
  assert program["kernels"] >= program["fusions"] > 0
  assert program["bytes"] > program["xla_bytes_accessed"]  # loops counted
  json.dumps(found)


def run(*arguments):
  """What the command prints where TensorFlow, TFDS and clu are missing."""
  code = (
    "import sys\n"
    "for name in ('tensorflow', 'tensorflow_datasets', 'clu', 'tensorboard'):\n"
    "  sys.modules[name] = None\n"  # importing it is an ImportError
    "from vit_ssl_jax.benchmark import __main__\n"
    f"__main__.main({list(arguments)!r})\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_sweep_profile_and_files_without_tensorflow(tmp_path):
  out, text = tmp_path / "a.json", tmp_path / "a.hlo"
  printed = run(
    "--stage=finetune", "--dataset=digits", "--batch_size=4", "--steps=1",
    "--rounds=1", "--config.model.embed_dim=8", "--config.model.num_heads=2",
    "--sweep=model.depth=2,3", "--profile", "--json", f"--out={out}",
    f"--hlo={text}", f"--trace={tmp_path / 'trace'}",
  )  # fmt: skip
  kept = json.loads(out.read_text())
  assert kept["figures"] == json.loads(printed.splitlines()[-1])
  assert [x["model.depth"] for x in kept["figures"]] == [2, 3]
  one, two = (x["model_flops"] for x in kept["figures"])
  assert one < two < 2 * one
  assert kept["versions"]["jax"] == jax.__version__
  assert "--sweep=model.depth=2,3" in kept["command"]
  for figures in kept["figures"]:
    shares = [x["share"] for x in figures["profile"]["parts"].values()]
    assert sum(shares) == pytest.approx(100)
    assert figures["profile"]["unattributed_share"] < 25
    assert {"augmentation", "MLP", "attention", "update of the weights"} <= (
      figures["profile"]["parts"].keys()
    )
  assert text.read_text().startswith("HloModule")
  assert list(tmp_path.glob("trace/plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--steps=0"], "--steps=0 has to be at least 1"),
    (["--dataset=mnist"], "DATASET of cifar10"),
    (["--batch_size=3"], "not a multiple of the 2 devices"),
    (["--arch=resnet"], "invalid choice"),
    (["--config.model.dept=3"], "did you mean 'depth'?"),
    (["--config.model.depth=deep"], "model.depth='deep' is not of the kind"),
    (["--config.model=3"], "model=3 is not of the kind"),
    (["--config.epochs"], "unrecognized arguments: --config.epochs"),
    (["--sweep=model.depth"], "has to be like --sweep=model.depth=3,6,9"),
    (["--sweep=model.dept=3,6"], "did you mean 'depth'?"),
    (["--chips=8,x"], "has to be like --chips=8,64,512"),
    (["--chips=9"], "a slice of v5e has 1, 4, 8"),
  ],
)
def test_arguments_that_make_no_sense(arguments, words, capsys):
  before = jax.config.jax_enable_compilation_cache
  with pytest.raises(SystemExit) as stop:
    command.main(arguments)
  jax.config.update("jax_enable_compilation_cache", before)
  assert stop.value.code == 2
  assert words in capsys.readouterr().err


def test_random_images_are_a_sets_kind():
  config = recipe.get_config("vit,cifar10")
  config.batch_size = 4
  batch = measuring.random_images(config, 2)
  assert batch["image"].shape == (8, 32, 32, 3)
  assert batch["image"].dtype == np.uint8
  assert batch["image"].max() > 250
  assert batch["label"].max() < steps.CLASSES
