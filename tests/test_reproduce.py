"""The paper's tables: what is run for them, and how they are filled."""

import argparse
import json
import shlex

import pytest

from vit_ssl_jax import reproduce, small_sets, smoke
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import corruptions


def call(capsys, *arguments):
  reproduce.main(list(arguments))
  return capsys.readouterr().out


@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("main", 15),
    ("fine_grained", 6),
    ("corruptions", 4),
    ("data_fraction", 3),
  ],
)
def test_a_command_for_each_cell(name, count, tmp_path, capsys):
  out = call(capsys, f"--table={name}", f"--workdir={tmp_path}", "--list")
  lines = out.splitlines()
  assert len(lines) == count
  for line in lines:
    first, *_, last = line.split(" && ")
    assert "configs/pretrain.py" in first
    assert shlex.split(first)[:3] == ["python", "-m", "main"]
    suite = "--suite=cifar" in last
    assert suite == (name == "corruptions")
    assert suite or "--config.init_from=" in last
  assert not list(tmp_path.iterdir())


def test_the_plan_says_what_is_done(tmp_path, capsys):
  done = tmp_path / "vit_cifar10_seed0" / "pretrain"
  done.mkdir(parents=True)
  (done / "result.json").write_text('{"step": 1}')
  arguments = ("--table=main", "--only=vit,cifar10", f"--workdir={tmp_path}")
  out = call(capsys, *arguments, "--dry-run", "--seeds=2")
  rows = [line.split() for line in out.splitlines()[2:]]
  assert [row[3:5] for row in rows] == [["2", "3"], ["3", "3"]]


def test_the_table_is_filled(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(reproduce, "run_all", lambda made: None)
  for seed in (0, 1):
    for name, top1 in (("scratch", 90), ("pretrained", 95), ("pretrain", 0)):
      workdir = tmp_path / f"vit_cifar10_seed{seed}" / name
      workdir.mkdir(parents=True)
      result = {"best_top1_on_test": top1 + seed, "seconds": 1800}
      result["devices"] = ["cpu", "cpu"]
      (workdir / "result.json").write_text(json.dumps(result))
  out = call(
    capsys, "--table=main", "--only=cifar10", f"--workdir={tmp_path}",
    "--seeds=2",
  )  # fmt: skip
  vit, swin, _ = out.splitlines()[2:]
  assert vit == (
    "| vit_cifar10 | 93.58 | 96.41 | 90.50 ± 0.71 | 95.50 ± 0.71 | 2 | cpu |"
    " 3.00 |"
  )
  assert "not run | not run | 0" in swin
  assert (tmp_path / "main.md").read_text() == out


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--table=mains"], "invalid choice"),
    (["--table=main", "--only=vit,aircraft"], "the table main has vit,tiny_im"),
    (["--table=main", "--seeds=0"], "--seeds=0 has to be at least 1"),
  ],
)
def test_arguments_that_make_no_sense(arguments, words, tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    reproduce.main([*arguments, f"--workdir={tmp_path}"])
  assert stop.value.code == 2
  assert words in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(
  ("name", "only", "cell"),
  [
    ("main", "vit,svhn", "vit_svhn | 97.82 | 98.03"),
    ("fine_grained", "vit,cars", "vit_cars | - | 43.89"),
    ("corruptions", "vit,cifar10", "vit_cifar10 | 39.93 | 26.01"),
    ("data_fraction", "", "swin_cifar10_0.5 | 90.83 | 94.26"),
  ],
)
def test_smoke(name, only, cell, tmp_path, capfd, monkeypatch):
  if not only:
    half = [x for x in reproduce.chosen(name, "") if x.fraction == 0.5]
    monkeypatch.setattr(reproduce, "chosen", lambda *_: half)
  arguments = [f"--table={name}", f"--only={only}", "--scale=smoke"]
  reproduce.main([*arguments, f"--workdir={tmp_path}"])
  assert f"| {cell} | " in capfd.readouterr().out
  text = (tmp_path / f"{name}.md").read_text()
  assert "not run" not in text
  if name == "corruptions":
    workdir = tmp_path / "vit_cifar10_seed0" / "pretrained"
    found = json.loads((workdir / "evaluation.json").read_text())["cifar10_c"]
    assert found["images"] == 10
    assert f" {found['mean_error']:.2f} | 1 |" in text
  # All is done: nothing runs again.
  monkeypatch.setattr(reproduce.subprocess, "run", None)
  reproduce.main([*arguments, f"--workdir={tmp_path}"])


@pytest.mark.parametrize("cell", ["vit,cifar10", "vit,cifar100"])
def test_a_stand_in_is_read_as_the_benchmark(cell, tmp_path):
  (cell,) = reproduce.chosen("corruptions", cell)
  smoke.make(tmp_path, cell)
  place = corruptions.find(f"{cell.suite}:{smoke.corrupted(tmp_path, cell)}")
  found = list(corruptions.read(place, 32))
  assert len(found) == 75
  classes = {"cifar10": 10, "cifar100": 100}[cell.dataset]
  for _, _, images, labels in found:
    assert images.shape == (classes, 32, 32, 3)
    assert sorted(labels) == list(range(classes))
  # Without the note it is a benchmark that is cut off.
  (place.folder / corruptions.STAND_IN).unlink()
  with pytest.raises(UserError, match=r"must be uint8 of shape \(50000, "):
    corruptions.find(f"{cell.suite}:{place.folder}")


def test_small_sets_differ_in_their_recipes_alone(tmp_path):
  args = argparse.Namespace(workdir=str(tmp_path), seeds=1, scale="full")
  ours, theirs = (
    small_sets.recipe(2500, "pretrain", paper, args) for paper in (False, True)
  )
  for key in ("epochs", "model.embed_dim", "views.global_size"):
    assert ours[key] == theirs[key]
  assert theirs["batch_size"] == 512
  assert theirs["teacher.centering"] == "mean"
  assert "teacher.centering" not in ours  # the recipe's own
  assert small_sets.recipe(500, "pretrain", True, args)["batch_size"] == 128


def test_small_sets_are_tabulated(tmp_path, capsys, monkeypatch):
  for seed, top1 in enumerate((40.0, 44.0)):
    path = tmp_path / f"small_500_seed{seed}" / "own" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"top1": top1, "seconds": 60.0}))
  args = argparse.Namespace(
    table="small_sets", workdir=str(tmp_path), seeds=2, scale="full"
  )
  reproduce.finish([500], args)
  line = capsys.readouterr().out.splitlines()[2]
  assert line == "| 500 | not run | not run | not run | 42.00 ± 2.83 | 2 | 1 |"
  assert (tmp_path / "small_sets.png").stat().st_size > 1000
  first, _ = (tmp_path / "small_sets.jsonl").read_text().splitlines()
  about = {"images": 500, "seed": 0, "run": "own"}
  assert json.loads(first) == about | {"top1": 40.0, "seconds": 60.0}
  made = []
  monkeypatch.setattr(small_sets, "make_subsets", lambda *x: made.append(x))
  arguments = "--table=small_sets", "--only=500", f"--workdir={tmp_path}"
  assert len(call(capsys, *arguments, "--list").splitlines()) == 1
  assert made[0][0] == [500]
  out = call(capsys, "--table=small_sets", f"--workdir={tmp_path}", "--dry-run")
  assert "2,500 images, seed 0" in out
  with pytest.raises(SystemExit):
    reproduce.main(["--table=small_sets", "--workdir=R", "--only=7"])
  assert "the table small_sets has 500, 1000" in capsys.readouterr().err
