"""The benchmark: it measures the stages' own steps."""

import json
import subprocess
import sys

import jax
import pytest

from vit_ssl_jax.benchmark import __main__ as benchmark, steps

TINY = ["--dataset=digits", "--batch_size=4", "--steps=1", "--rounds=2"]
TINY += [
  "--config.model.embed_dim=8",
  "--config.model.num_heads=2",
  "--config.model.depth=1",
]


def run(*arguments, cwd=None):
  """The command where TensorFlow, TFDS and clu are missing."""
  code = (
    "import sys\n"
    "for name in ('tensorflow', 'tensorflow_datasets', 'clu', 'tensorboard'):\n"
    "  sys.modules[name] = None\n"  # importing it is an ImportError
    "from vit_ssl_jax.benchmark import __main__ as benchmark\n"
    f"benchmark.main({list(arguments)!r})\n"
  )
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd
  )


def test_figures_and_trace_without_tensorflow(tmp_path):
  trace = tmp_path / "trace"
  done = run(*TINY, "--stage=finetune", "--json", f"--trace={trace}")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["images_per_second"] == pytest.approx(4 / found["step_seconds"])
  assert found["step_seconds"] == pytest.approx(sum(found["rounds"]) / 2)
  assert found["compile_seconds"] > 0
  assert found["memory_bytes"] > 0
  assert (found["arch"], found["stage"]) == ("vit", "finetune")
  assert (found["batch_size"], found["dtype"]) == (4, "float32")
  assert found["device"]
  assert (found["devices"], found["jax"]) == (
    jax.device_count(),
    jax.__version__,
  )
  assert list(trace.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--steps=0"], "--steps=0 has to be at least 1"),
    (["--dataset=mnist"], 'no data set "mnist"'),
    (["--batch_size=3"], "not a multiple of the 2 devices"),
    (["--arch=resnet"], "ARCH of vit"),
    (["--stage=test"], "invalid choice"),
    (["--config.model.dept=3"], "did you mean 'model.depth'"),
    (["--config.model.depth=deep"], "model.depth='deep': "),
    (["--config.model=3"], "no key 'model': did you mean"),
    (["--config.epochs"], "unrecognized arguments: --config.epochs"),
    (["--step=3"], "unrecognized arguments: --step=3"),
    (["--chips=x"], "--chips: invalid numbers value: 'x'"),
    (["--config.accumulate_steps=0"], "accumulate_steps=0 has to be"),
    (["--dataset=folder:/x"], "possible are cifar10, "),
  ],
)
def test_arguments_that_make_no_sense(arguments, words, capsys):
  before = jax.config.jax_enable_compilation_cache
  with pytest.raises(SystemExit) as stop:
    benchmark.main(arguments)
  jax.config.update("jax_enable_compilation_cache", before)
  assert stop.value.code == 2
  printed = capsys.readouterr().err
  assert words in printed
  assert len(printed.splitlines()) == 1


def test_values_are_numbers_tuples_or_text():
  args, settings = benchmark.parse(
    [
      "--config.optim.learning_rate=1e-3",
      "--config.views.global_scale=(0.5, 1.0)",
      "--config.dtype=bfloat16",
      "--config.remat=true",
    ]
  )
  config = steps.make_config("pretrain", "vit", args, settings)
  assert config.optim.learning_rate == 1e-3
  assert config.views.global_scale == (0.5, 1.0)
  assert (config.dtype, config.remat) == ("bfloat16", True)
