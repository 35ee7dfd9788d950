"""The paper's tables: the runs that fill them, and the filled table."""

import importlib.util
import json
import pathlib
import shlex
import sys

import pytest

from vit_ssl_jax import reproduce
from vit_ssl_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
VIT = ("--table=main", "--only=vit,cifar10")


@pytest.fixture
def results(tmp_path):
  """(folder, content of result.json) -> a finished run."""

  def write(folder, **content):
    workdir = tmp_path / folder
    workdir.mkdir(parents=True)
    (workdir / "result.json").write_text(json.dumps(content))
    return workdir

  return write


@pytest.mark.parametrize(
  ("name", "count"),
  [("main", 15), ("fine_grained", 6), ("corruptions", 4), ("data_fraction", 3)],
)
def test_a_command_for_each_cell(name, count, tmp_path, capsys):
  reproduce.main([f"--table={name}", f"--workdir={tmp_path}", "--list"])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == count
  for line in lines:
    first, *_, last = line.split(" && ")
    assert "configs/pretrain.py" in first
    assert shlex.split(first)[:3] == ["python", "-m", "main"]
    suite = "--suite=cifar" in last
    assert suite == (name == "corruptions")
    assert suite or "--config.init_from=" in last
  assert not list(tmp_path.iterdir())


def test_finished_runs_are_not_planned_again(results, tmp_path, capsys):
  results("vit_cifar10_seed0/pretrain", step=1)
  reproduce.main([*VIT, f"--workdir={tmp_path}", "--dry-run", "--seeds=2"])
  rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
  assert [row[3:5] for row in rows] == [["2", "3"], ["3", "3"]]


def test_the_table_is_filled_from_finished_runs(results, tmp_path, capsys):
  for seed in (0, 1):
    for name, top1 in (("scratch", 90), ("pretrained", 95), ("pretrain", 0)):
      results(
        f"vit_cifar10_seed{seed}/{name}",
        best_top1_on_test=top1 + seed, seconds=1800, devices=["cpu", "cpu"],
      )  # fmt: skip
  reproduce.main([*VIT, f"--workdir={tmp_path}", "--seeds=2"])
  text = capsys.readouterr().out
  assert text.splitlines()[-1] == (
    "| vit_cifar10 | 93.58 | 96.41 | 90.50 ± 0.71 | 95.50 ± 0.71 | 2 | cpu |"
    " 3.00 |"
  )
  assert (tmp_path / "main.md").read_text() == text


def test_mean_errors_come_from_evaluations(results, tmp_path):
  [cell] = reproduce.select("corruptions", "vit,cifar10")
  for name, error in (("scratch", 40.0), ("pretrained", 30.0)):
    workdir = results(f"vit_cifar10_seed0/{name}", devices=["cpu"], seconds=1)
    assert reproduce.read_runs(cell, 0, tmp_path) is None
    content = {"cifar10_c": {"mean_error": error}}
    (workdir / "evaluation.json").write_text(json.dumps(content))
  results("vit_cifar10_seed0/pretrain", seconds=1)
  assert reproduce.read_runs(cell, 0, tmp_path) == (40.0, 30.0, "cpu", 3)
  assert all(reproduce.is_done(*x) for x in reproduce.jobs(cell, 0, tmp_path))


def test_missing_runs_are_run_and_a_failure_is_reported(results, tmp_path):
  workdir = tmp_path / "A"
  write = f"import pathlib; pathlib.Path('{workdir}/result.json')"
  plan = {"A": [(workdir, ["python", "-c", f"{write}.write_text('[1]')"])]}
  workdir.mkdir()
  reproduce.run_missing(plan)
  assert reproduce.is_done(*plan["A"][0])
  plan["B"] = [(tmp_path / "B", ["python", "-c", "raise SystemExit(3)"])]
  with pytest.raises(UserError, match="failed with status 3"):
    reproduce.run_missing(plan)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--table=mains"], "invalid choice"),
    (["--table=main", "--only=vit,aircraft"], "the table main has vit,tiny_im"),
    (["--table=main", "--seeds=0"], "--seeds=0 must be at least 1"),
  ],
)
def test_bad_arguments_cost_one_sentence(arguments, words, tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    reproduce.main([*arguments, f"--workdir={tmp_path}"])
  assert stop.value.code == 2
  assert words in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def small_sets():
  """The script benchmarks/small_sets.py."""
  path = ROOT / "benchmarks" / "small_sets.py"
  spec = importlib.util.spec_from_file_location("small_sets", path)
  module = sys.modules["small_sets"] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_small_sets_compare_recipes_on_the_same_network(small_sets):
  arg = "vit,npz:x.npz"
  ours, theirs = (
    small_sets.recipe(arg, 2500, "pretrain", paper) for paper in (False, True)
  )
  for key in ("epochs", "model.embed_dim", "views.global_size"):
    assert ours[key] == theirs[key]
  assert theirs["batch_size"] == 512
  assert theirs["objective"] == "views" != ours.get("objective")
  assert small_sets.recipe(arg, 500, "pretrain", True)["batch_size"] == 128


def test_small_sets_are_tabulated_from_the_measured_figures(small_sets):
  path = ROOT / "benchmarks" / "cpu-2-cores" / "small_sets.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  line = small_sets.table([500], rows).splitlines()[-1]
  assert line in (ROOT / "docs" / "results.md").read_text()
