"""The benchmark: it measures the stages' own steps."""

import json
import subprocess
import sys

import jax
import pytest

from vit_ssl_jax.benchmark import command, steps

TINY = ["--dataset=digits", "--batch_size=4", "--steps=1", "--rounds=2"]
TINY += [
  "--config.model.embed_dim=8",
  "--config.model.num_heads=2",
  "--config.model.depth=1",
]


def test_figures_and_trace_without_tensorflow(tmp_path):
  trace = tmp_path / "trace"
  arguments = [*TINY, "--stage=finetune", "--json", f"--trace={trace}"]
  code = (
    "import sys\n"
    "for name in ('tensorflow', 'tensorflow_datasets', 'clu', 'tensorboard'):\n"
    "  sys.modules[name] = None\n"  # importing it is an ImportError
    "from vit_ssl_jax.benchmark import command\n"
    f"command.main({arguments!r})\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  figures = json.loads(done.stdout.splitlines()[-1])
  seconds = figures["step_seconds"]
  assert figures["images_per_second"] == pytest.approx(4 / seconds)
  assert seconds == pytest.approx(sum(figures["rounds"]) / 2)
  assert figures["compile_seconds"] > 0
  assert figures["memory_bytes"] > 0
  assert (figures["arch"], figures["stage"]) == ("vit", "finetune")
  assert (figures["batch_size"], figures["dtype"]) == (4, "float32")
  assert figures["devices"] == jax.device_count()
  assert list(trace.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--steps=0"], "--steps=0 must be at least 1"),
    (["--dataset=mnist"], "mnist"),
    (["--batch_size=3"], "not a multiple of the 2 devices"),
    (["--arch=resnet"], "invalid choice: 'resnet'"),
    (["--stage=test"], "invalid choice"),
    (["--config.model.dept=3"], "did you mean 'model.depth'"),
    (["--config.model.depth=deep"], "model.depth='deep'"),
    (["--config.epochs"], "unrecognized arguments: --config.epochs"),
    (["--step=3"], "unrecognized arguments: --step=3"),
    (["--chips=x"], "--chips: invalid integers value: 'x'"),
    (["--dataset=folder:/x"], "possible are cifar10, "),
  ],
)
def test_bad_arguments_cost_one_sentence(arguments, words, capsys):
  before = jax.config.jax_enable_compilation_cache
  with pytest.raises(SystemExit) as stop:
    command.main(arguments)
  jax.config.update("jax_enable_compilation_cache", before)
  assert stop.value.code == 2
  printed = capsys.readouterr().err
  assert words in printed
  assert len(printed.splitlines()) == 1


def test_values_are_numbers_tuples_or_strings():
  args, settings = command.parse(
    [
      "--config.optim.learning_rate=1e-3",
      "--config.views.global_scale=(0.5, 1.0)",
      "--config.dtype=bfloat16",
      "--config.remat=true",
    ]
  )
  config = steps.make_config("pretrain", "vit", args.dataset, None, settings)
  assert config.optim.learning_rate == 1e-3
  assert config.views.global_scale == (0.5, 1.0)
  assert (config.dtype, config.remat) == ("bfloat16", True)
