"""The command line: every mistake costs one sentence and status 2."""

import pathlib
import subprocess
import sys

import ml_collections
import pytest

from vit_ssl_jax import main, models

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = "--config=configs/pretrain.py:vit,digits"
PAPER = {"vit": 2_697_610, "swin": 7_048_612, "cait": 8_053_450}
# ml_collections loads a config file with a function that is being retired.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
  monkeypatch.chdir(ROOT)
  main.FLAGS["workdir"].unparse()


@pytest.mark.parametrize(
  ("argv", "words"),
  [
    (["--workdir=A"], "--config is missing"),
    (["--workdir=A", "--config=configs/pretrian.py"], "no recipe"),
    (["--workdir=A", "--config=configs/pretrain.py:vit,mnist"], "'mnist' is"),
    (["--workdir=A", RECIPE, "--config.epoch=3"], "did you mean 'epochs'"),
    (["--workdir=A", RECIPE, "--config.optim.lr=3"], "learning_rate"),
    (["--workdir=A", RECIPE, "--config.epochs=few"], "'few'"),
    (["--workdir=A", RECIPE, "--wrkdir=B"], "'wrkdir'"),
    ([RECIPE], "--workdir=FOLDER is missing"),
  ],
)
def test_one_sentence(argv, words, capsys, monkeypatch):
  argv = ["main.py", *argv]
  monkeypatch.setattr("sys.argv", argv)
  with pytest.raises(SystemExit) as stop:
    main.parse(argv)
  assert stop.value.code == 2
  error = capsys.readouterr().err.strip()
  assert error.startswith("error: ")
  assert words in error
  assert "\n" not in error


@pytest.mark.parametrize("arch", ["vit", "swin", "cait"])
@pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
def test_recipe_of_every_architecture(recipe, arch):
  config = main.load_recipe([f"--config=configs/{recipe}.py:{arch},cifar10"])
  model = models.from_config(config, num_classes=10)
  assert models.count(model) == PAPER[arch]


def test_several_stages_on_the_command_line(monkeypatch):
  argv = [
    "main.py", "--workdir=A", "--config=configs/pretrain.py:swin,cifar10",
    "--config.model.depths=(2, 4)", "--config.model.num_heads=(3, 6)",
  ]  # fmt: skip
  monkeypatch.setattr("sys.argv", argv)
  main.parse(argv)
  assert main.FLAGS.config.model.depths == (2, 4)


@pytest.mark.parametrize("argv", [["--help"], ["--help", RECIPE]])
def test_help(argv, capsys):
  with pytest.raises(SystemExit) as stop:
    main.parse(["main.py", *argv])
  assert stop.value.code == 0
  text = capsys.readouterr().out
  assert "--workdir" in text
  assert "--distributed" in text
  for baseline in ("no --config.init_from", "model.locality=spt+lsa", "drloc"):
    assert baseline in text
  assert ("learning_rate" in text) == (RECIPE in argv)


def test_the_next_command_is_for_the_same_images(monkeypatch):
  argv = ["main.py", "--workdir=A/", RECIPE, "--config.val_fraction=0.1"]
  argv += ["--config.epochs=3", "--config.model.depth=2"]
  monkeypatch.setattr("sys.argv", argv)
  (line,) = main.outlook(main.load_recipe(argv), "A/")
  assert line == (
    "next: python -m main --config=configs/finetune.py:vit,digits"
    " --workdir=A_finetuned --config.init_from=A/ --config.val_fraction=0.1"
    " --config.model.depth=2"
  )


def test_scratch_beside_a_pretrained_run(monkeypatch, make_workdir, tmp_path):
  runs = {
    name: make_workdir("finetune", "vit", ["a", "b"], **changes)
    for name, changes in (
      ("pretrained", {"init_from": "A"}),
      ("scratch", {}),
      ("longer", {"epochs": 9}),
      ("stopped", {"max_steps": 3}),
    )
  }
  for name, workdir in runs.items():
    workdir.rename(tmp_path / name)
  config = ml_collections.ConfigDict({"stage": "finetune", "init_from": "A"})
  (line,) = main.outlook(config, tmp_path / "pretrained")
  assert line == f"from scratch: 87.50 ({tmp_path / 'scratch'})"


def test_pretraining_imports_few_files():
  """Those that a reader of CIFAR-10's view prediction meets."""
  program = """
import sys
from vit_ssl_jax import main, recipes, train
from vit_ssl_jax.data import tfds_sets
train.stage_of(recipes.get("pretrain", "vit,cifar10"))
modules = [x for name, x in sys.modules.items() if "vit_ssl_jax" in name]
print(*(x.__file__ for x in modules))
"""
  run = [sys.executable, "-c", program]
  files = subprocess.check_output(run, text=True).split()
  files = {x for x in files if pathlib.Path(x).stat().st_size}
  assert len(files) <= 60
  assert not any("interop" in x or "finetune" in x for x in files)
