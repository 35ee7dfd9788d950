"""The host loop through both stages, on a set of 48 tiny images."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from vit_ssl_jax import train
from vit_ssl_jax.data import load
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.run import checkpoints, metrics
from vit_ssl_jax.train import alarms, finetune, loop

ROOT = pathlib.Path(__file__).parent.parent
STAGES = ("pretrain", "finetune")


def run(config, workdir, **changes):
  """The result of a run, some values of whose config are changed."""
  config = config.copy_and_resolve_references()
  config.update(changes)
  return train.run(config, workdir)


def lines_of(workdir):
  """The lines of metrics without their times."""
  lines = metrics.read(workdir)
  return [{k: v for k, v in x.items() if k != "seconds"} for x in lines]


@pytest.fixture(scope="module")
def runs(make_tiny, trained, tmp_path_factory):
  """A finished run of each stage: config, workdir and result."""
  config, workdir = make_tiny("pretrain", "vit"), tmp_path_factory.mktemp("run")
  return {
    "pretrain": (config, workdir, run(config, workdir)),
    "finetune": (make_tiny("finetune", "vit"), *trained),
  }


def test_workdir_of_a_pretraining(runs):
  _, workdir, result = runs["pretrain"]
  assert json.loads((workdir / "result.json").read_text()) == result
  lines = metrics.read(workdir)
  assert [line["step"] for line in lines] == list(range(1, 10))
  assert [line["epoch"] for line in lines][2::3] == [1, 2, 3]
  assert [line["step"] for line in lines if "knn" in line] == [3, 6, 9]
  assert lines[0]["learning_rate"] == 0
  assert result["step"] == 9
  assert result["images_per_second"] > 0
  assert set(result) >= {"state_sha256", "seconds", "devices", "versions"}
  assert not list(workdir.rglob("*.tmp"))


def test_workdir_of_a_finetuning(runs):
  _, workdir, result = runs["finetune"]
  top1 = [line["top1"] for line in metrics.read(workdir) if "top1" in line]
  assert len(top1) == 3
  assert result["top1"] == top1[-1]
  assert result["best_top1_on_test"] == max(top1)


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_ends_with_the_same_bits(stage, runs, tmp_path):
  config, whole, expected = runs[stage]
  for stop in (3, 4, 0):
    result = run(config, tmp_path, max_steps=stop)
  assert result["state_sha256"] == expected["state_sha256"]
  assert lines_of(tmp_path) == lines_of(whole)


@pytest.mark.long
@pytest.mark.parametrize("arch", ["swin", "cait"])
def test_both_stages_of_other_architectures(arch, tiny_npz, tmp_path):
  """Stopped and resumed as in one go; the second starts from the first."""
  pretraining, tuning = (tiny.config(s, arch, tiny_npz) for s in STAGES)
  tuning.init_from = str(tmp_path / "whole_pretrain")
  for config in (pretraining, tuning):
    whole = run(config, tmp_path / f"whole_{config.stage}")
    for stop in (4, 0):
      parts = run(config, tmp_path / config.stage, max_steps=stop)
    assert parts["state_sha256"] == whole["state_sha256"]
  assert whole["step"] == 9


@pytest.mark.parametrize(
  "arch",
  ["vit", *(pytest.param(x, marks=pytest.mark.long) for x in ("swin", "cait"))],
)
def test_training_with_locality(arch, tiny_npz, tmp_path):
  config = tiny.config("finetune", arch, tiny_npz)
  config.model.locality = "spt+lsa"
  config.mix.probability = 0.0
  config.update(epochs=10, evaluate_every_epochs=10, checkpoint_every_steps=30)
  run(config, tmp_path)
  losses = [line["loss"] for line in metrics.read(tmp_path)]
  assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.long
def test_other_seed_other_bits(runs, tmp_path):
  config, _, expected = runs["pretrain"]
  result = run(config, tmp_path, seed=1)
  assert result["state_sha256"] != expected["state_sha256"]


def test_streaming_makes_no_difference(runs, tmp_path):
  """Nor does which checkpoints are kept."""
  config, _, expected = runs["finetune"]
  changes = {"placement": "host", "keep_last": 1, "keep_every_epochs": 2}
  result = run(config, tmp_path, **changes)
  assert result["state_sha256"] == expected["state_sha256"]
  names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert {name for name in names if name.isdigit()} == {"6", "9"}


@pytest.mark.parametrize(
  "stage", ["finetune", pytest.param("pretrain", marks=pytest.mark.long)]
)
def test_several_steps_per_dispatch(stage, runs, tmp_path):
  """Wherever the run is cut, and as one by one but for rounding."""
  config, one_by_one, _ = runs[stage]
  changes = {"steps_per_dispatch": 4, "log_every_steps": 7}
  changes["checkpoint_every_steps"] = 8
  whole = run(config, tmp_path / "whole", **changes)
  for stop in (2, 0):
    parts = run(config, tmp_path / "parts", **changes, max_steps=stop)
  assert parts["state_sha256"] == whole["state_sha256"]
  lines = lines_of(tmp_path / "whole")
  assert lines == lines_of(tmp_path / "parts")
  for line, expected in zip(lines, lines_of(one_by_one), strict=True):
    assert line == pytest.approx(expected, rel=1e-4)


def test_steps_that_go_together(finetune_tiny):
  """None is left out, and what is due is done right after its step."""
  finetune_tiny.update(log_every_steps=4, checkpoint_every_steps=6)
  finetune_tiny.update(evaluate_every_epochs=1, epochs=4, max_steps=14)
  plan = loop.Plan(finetune_tiny, steps_per_epoch=5)
  ranges = [list(x) for x in plan.dispatches(1, most=3)]
  assert ranges == [[2, 3, 4], [5], [6], [7, 8], [9, 10], [11, 12], [13, 14]]


def test_finished_run_stays_as_it_is(runs):
  config, workdir, result = runs["finetune"]
  before = metrics.read(workdir)
  assert run(config, workdir) == result
  assert metrics.read(workdir) == before


def test_terminated_run_saves_and_says_so(finetune_tiny, tmp_path, monkeypatch):
  """SIGTERM before the first step: one step, one checkpoint, a sentence."""
  real = load.open_data

  def open_data(config, mesh, dataset=None):
    config, dataset, source = real(config, mesh, dataset)

    def items(start):
      os.kill(os.getpid(), signal.SIGTERM)
      yield from source.items(start)

    return config, dataset, dataclasses.replace(source, items=items)

  monkeypatch.setattr(load, "open_data", open_data)
  with pytest.raises(KeyboardInterrupt, match="stopped at step 1 of 9"):
    run(finetune_tiny, tmp_path)
  assert (tmp_path / "checkpoints" / "1").exists()
  assert not (tmp_path / "result.json").exists()


def test_not_finite_stops_with_step_and_checkpoint(
  finetune_tiny, tmp_path, monkeypatch
):
  make = finetune.make_step

  def make_step(parts):
    step = make(parts)

    def broken(state, batch):
      state, values = step(state, batch)
      loss = jax.numpy.where(state.step == 5, jax.numpy.nan, values["loss"])
      return state, values | {"loss": loss}

    return broken

  monkeypatch.setattr(finetune, "make_step", make_step)
  with pytest.raises(UserError, match=r"loss is not finite at step 5; .*/4;"):
    run(finetune_tiny, tmp_path)
  assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4]
  assert not (tmp_path / "checkpoints" / "6").exists()


def test_steps_that_are_not_finite_are_skipped(
  finetune_tiny, tmp_path, monkeypatch, capsys
):
  """Two of them, and then ten in a row, which end the run."""
  real = finetune.update

  def update(parts, state, images, targets, key):
    step = state.step + 1
    bad = (step == 5) | (step == 6) | (step >= 10)
    images = jax.numpy.where(bad, jax.numpy.nan, images)
    return real(parts, state, images, targets, key)

  monkeypatch.setattr(finetune, "update", update)
  finetune_tiny.update(on_nonfinite="skip", epochs=7, keep_last=9)
  words = r"the gradient of 0/.* is not finite at step 19; .* is .*/18;"
  with pytest.raises(UserError, match=words):
    run(finetune_tiny, tmp_path)
  lines = metrics.read(tmp_path)
  skipped = [5, 6, *range(10, 19)]
  assert [x["step"] for x in lines if "skipped" in x] == skipped
  assert [x["step"] for x in lines if "loss" not in x] == skipped
  before, after, later = (
    checkpoints.read(tmp_path / "checkpoints" / name)[0]
    for name in ("4", "6", "8")
  )
  assert (before["step"], after["step"]) == (4, 6)
  jax.tree.map(np.testing.assert_array_equal, after["params"], before["params"])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(later["params"]))
  messages = capsys.readouterr().err
  assert messages.count("skipping step") == 2
  assert "the gradient of 0/" in messages


def test_changes_are_reported(runs, tmp_path, monkeypatch, capsys):
  """Other packages, and lines of metrics that the run has not written."""
  config, _, expected = runs["finetune"]
  run(config, tmp_path, max_steps=4)
  file = tmp_path / "metrics.jsonl"
  file.write_text(file.read_text().replace('"loss": 0.', '"loss": 1.'))
  real = checkpoints.environment()
  other = real | {"versions": real["versions"] | {"jax": "0.0.1"}}
  monkeypatch.setattr(checkpoints, "environment", lambda: other)
  result = run(config, tmp_path)
  messages = capsys.readouterr().err
  assert "resuming with jax 0.0.1" in messages
  assert "metrics.jsonl was changed since the checkpoint" in messages
  assert result["state_sha256"] == expected["state_sha256"]


def test_workdir_of_another_run(runs):
  config, workdir, _ = runs["finetune"]
  config = config.copy_and_resolve_references()
  config.optim.learning_rate = 0.5
  words = r"optim.learning_rate \(0.001 there, 0.5"
  with pytest.raises(UserError, match=words):
    run(config, workdir, log_every_steps=7)  # which may change


@pytest.mark.parametrize("text", ['{"epochs": 3}', '{"format": 1}', "[]"])
def test_workdir_of_another_version(text, finetune_tiny, tmp_path):
  workdir = tmp_path / "old"
  (workdir / "checkpoints" / "7").mkdir(parents=True)
  (workdir / "config.json").write_text(text)
  words = "is a run of another version of vit-ssl-jax"
  with pytest.raises(UserError, match=words):
    run(finetune_tiny, workdir)
  with pytest.raises(UserError, match=words):
    run(finetune_tiny, tmp_path / "new", init_from=str(workdir))
  assert not (tmp_path / "new").exists()


def test_finetuning_starts_from_the_teacher(runs, finetune_tiny, tmp_path):
  _, workdir, _ = runs["pretrain"]
  finetune_tiny.optim.min_learning_rate = 0.0  # so that step 1 changes nothing
  run(finetune_tiny, tmp_path, init_from=str(workdir), max_steps=1)
  teacher = checkpoints.read(workdir)[0]["teacher"]["backbone"]
  params = checkpoints.read(tmp_path / "checkpoints" / "1")[0]["params"]
  params.pop("head")
  jax.tree.map(np.testing.assert_array_equal, params, teacher)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (
      {"patch_size": 2},
      r"proj.kernel has shape \(4, 4, 3, 8\) and not \(2, 2",
    ),
    ({"depth": 3}, "missing blocks_2.attn.proj.bias"),
    ({"num_heads": 4}, "was trained with model.num_heads=2 and not 4"),
    ({"locality": "lsa"}, "was trained with model.locality='' and not 'lsa'"),
  ],
)
def test_init_from_another_model(runs, finetune_tiny, tmp_path, changes, words):
  finetune_tiny.model.update(changes)
  with pytest.raises(UserError, match=words):
    run(finetune_tiny, tmp_path / "new", init_from=str(runs["pretrain"][1]))


def test_init_from_nowhere(finetune_tiny, tmp_path):
  (tmp_path / "empty").mkdir()
  for name, words in (
    ("nothing", "no file or folder"),
    ("empty", "neither a workdir nor"),
  ):
    with pytest.raises(UserError, match=words):
      run(finetune_tiny, tmp_path / "new", init_from=str(tmp_path / name))


@pytest.mark.parametrize(
  ("stage", "arch", "changes", "words"),
  [
    ("finetune", "vit", {"batch_size": 15}, "is not a multiple of the 2 dev"),
    ("finetune", "vit", {"batch_size": 64}, "from 1 to 48"),
    ("pretrain", "vit", {"model.image_size": 10}, "=10 is not a multiple of"),
    ("pretrain", "swin", {"model.image_size": 6}, "3 patches a side"),
    ("pretrain", "swin", {"model.window_size": 5}, "window_size=5 must be"),
    ("finetune", "swin", {"model.depths": (2, 0)}, r"model.depths=\(2, 0\)"),
    ("finetune", "swin", {"model.num_heads": (1, 0)}, r"num_heads=\(1, 0\)"),
    ("pretrain", "cait", {"model.num_heads": 3}, "3 heads do not divide"),
    ("finetune", "cait", {"drloc.enabled": True}, "vit and swin, not"),
  ],
)
def test_values_that_make_no_sense(
  stage, arch, changes, words, make_tiny, tmp_path, monkeypatch
):
  """All but those that need the data are refused before it is read."""
  if "batch_size" not in changes:
    monkeypatch.setattr(load, "open_data", None)
  config = make_tiny(stage, arch)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    run(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_hopeless_run_is_stopped(pretrain_tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(alarms, "collapse_warning", lambda *_: "no signal")
  with pytest.raises(UserError, match="stopped at step 1: no signal"):
    run(pretrain_tiny, tmp_path, on_collapse="stop")
  monkeypatch.undo()
  assert run(pretrain_tiny, tmp_path, on_collapse="stop")["step"] == 9


def test_events_can_be_read(tmp_path):
  tf = pytest.importorskip("tensorflow")
  with metrics.Recorder(tmp_path, 0, 3, tensorboard=True) as recorder:
    recorder.add(range(1, 2), {"loss": jax.numpy.float32(0.5)})
    recorder.complete({"top1": 50.0})
    recorder.flush()
  (path,) = tmp_path.glob("events*")
  tags = {
    value.tag
    for event in tf.compat.v1.train.summary_iterator(str(path))
    for value in event.summary.value
  }
  assert tags == {"loss", "top1", "seconds"}


def test_npz_run_without_tensorflow(finetune_tiny, tmp_path):
  """It needs none, and config.json says that it wrote no events."""
  finetune_tiny.update(tensorboard=True, max_steps=1)
  code = """
import importlib.util, json, sys, ml_collections
real = importlib.util.find_spec
importlib.util.find_spec = lambda x: None if x == "tensorflow" else real(x)
sys.modules["tensorflow"] = None
from vit_ssl_jax import train
train.run(ml_collections.ConfigDict(json.loads(sys.argv[1])), sys.argv[2])
"""
  command = [sys.executable, "-c", code, finetune_tiny.to_json()]
  done = subprocess.run(
    [*command, str(tmp_path)], cwd=ROOT, check=True, stderr=subprocess.PIPE
  )
  assert b"tensorboard=False: TensorFlow" in done.stderr
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["tensorboard"] is False
