"""The host loop through both stages, on a set of 48 tiny images."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from vit_ssl_jax import train
from vit_ssl_jax.data import load
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.run import checkpoints, metrics
from vit_ssl_jax.train import alarms, finetune, loop

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def pretrained(memory, pretrain_tiny, tmp_path_factory):
  """A finished pretraining: its workdir and its result."""
  if "pretrain" not in memory:
    workdir = tmp_path_factory.mktemp("pretrained")
    memory["pretrain"] = workdir, train.run(pretrain_tiny, workdir)
  return memory["pretrain"]


def without_time(lines):
  return [{k: v for k, v in x.items() if k != "seconds"} for x in lines]


def test_workdir_of_a_pretraining(pretrained):
  workdir, result = pretrained
  assert json.loads((workdir / "result.json").read_text()) == result
  lines = metrics.read(workdir)
  assert [line["step"] for line in lines] == list(range(1, 10))
  assert [line["epoch"] for line in lines][2::3] == [1, 2, 3]
  assert [line["step"] for line in lines if "knn" in line] == [3, 6, 9]
  assert lines[0]["learning_rate"] == 0
  assert result["step"] == 9
  assert 0 <= result["knn"] <= 100
  assert result["parameters"] > 0
  assert result["images_per_second"] > 0
  assert set(result) >= {"state_sha256", "seconds", "devices", "versions"}
  assert not list(workdir.rglob("*.tmp"))


def test_workdir_of_a_finetuning(trained):
  workdir, result = trained
  lines = metrics.read(workdir)
  top1 = [line["top1"] for line in lines if "top1" in line]
  assert len(top1) == 3
  assert result["top1"] == top1[-1]
  assert result["best_top1_on_test"] == max(top1)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_resuming_ends_with_the_same_bits(stage, request, tmp_path):
  config = request.getfixturevalue(f"{stage}_tiny")
  fixture = "pretrained" if stage == "pretrain" else "trained"
  whole_dir, whole = request.getfixturevalue(fixture)
  for stop in (3, 4, 0):
    with config.unlocked():
      config.max_steps = stop
    result = train.run(config, tmp_path)
  assert result["state_sha256"] == whole["state_sha256"]
  ours = without_time(metrics.read(tmp_path))
  expected = without_time(metrics.read(whole_dir))
  assert ours == expected


@pytest.mark.long
@pytest.mark.parametrize("arch", ["swin", "cait"])
def test_both_stages_of_other_architectures(arch, make_tiny, tmp_path):
  """Stopped and resumed as in one go; the second starts from the first."""
  pretraining, tuning = (make_tiny(s, arch) for s in ("pretrain", "finetune"))
  tuning.init_from = str(tmp_path / "whole_pretrain")
  for config in (pretraining, tuning):
    whole = train.run(config, tmp_path / f"whole_{config.stage}")
    for stop in (4, 0):
      with config.unlocked():
        config.max_steps = stop
      parts = train.run(config, tmp_path / config.stage)
    assert parts["state_sha256"] == whole["state_sha256"]
    with config.unlocked():
      config.max_steps = 0
  assert whole["step"] == 9


@pytest.mark.parametrize(
  "arch",
  [
    "vit",
    pytest.param("swin", marks=pytest.mark.long),
    pytest.param("cait", marks=pytest.mark.long),
  ],
)
def test_training_with_locality(arch, make_tiny, tmp_path):
  config = make_tiny("finetune", arch)
  config.model.locality = "spt+lsa"
  config.mix.probability = 0.0
  config.update(epochs=10, evaluate_every_epochs=10, checkpoint_every_steps=30)
  train.run(config, tmp_path)
  losses = [line["loss"] for line in metrics.read(tmp_path)]
  assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_checkpoints_that_are_kept(finetune_tiny, tmp_path):
  finetune_tiny.update(keep_last=1, keep_every_epochs=2)
  train.run(finetune_tiny, tmp_path)
  kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert {name for name in kept if name.isdigit()} == {"6", "9"}


@pytest.mark.long
def test_other_seed_other_bits(pretrained, pretrain_tiny, tmp_path):
  pretrain_tiny.seed = 1
  result = train.run(pretrain_tiny, tmp_path)
  assert result["state_sha256"] != pretrained[1]["state_sha256"]


def test_streaming_makes_no_difference(trained, finetune_tiny, tmp_path):
  finetune_tiny.placement = "host"
  result = train.run(finetune_tiny, tmp_path)
  assert result["state_sha256"] == trained[1]["state_sha256"]


@pytest.mark.parametrize(
  "stage", ["finetune", pytest.param("pretrain", marks=pytest.mark.long)]
)
def test_several_steps_per_dispatch(stage, request, tmp_path):
  """Wherever the run is cut, and as one by one but for rounding."""
  config = request.getfixturevalue(f"{stage}_tiny")
  fixture = "pretrained" if stage == "pretrain" else "trained"
  one_by_one, _ = request.getfixturevalue(fixture)
  config.update(steps_per_dispatch=4, log_every_steps=7)
  config.checkpoint_every_steps = 8
  whole = train.run(config, tmp_path / "whole")
  for stop in (2, 0):
    with config.unlocked():
      config.max_steps = stop
    parts = train.run(config, tmp_path / "parts")
  assert parts["state_sha256"] == whole["state_sha256"]
  lines = without_time(metrics.read(tmp_path / "whole"))
  assert lines == without_time(metrics.read(tmp_path / "parts"))
  expected = without_time(metrics.read(one_by_one))
  for ours, theirs in zip(lines, expected, strict=True):
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_steps_that_go_together(finetune_tiny):
  """None is left out, and what is due is done right after its step."""
  finetune_tiny.update(log_every_steps=4, checkpoint_every_steps=6)
  finetune_tiny.update(evaluate_every_epochs=1)
  finetune_tiny.update(epochs=4, max_steps=14)
  plan = loop.Plan(finetune_tiny, per_epoch=5)
  made = [list(x) for x in plan.dispatches(1, most=3)]
  assert made == [[2, 3, 4], [5], [6], [7, 8], [9, 10], [11, 12], [13, 14]]


def test_finished_run_stays_as_it_is(trained, finetune_tiny):
  workdir, result = trained
  before = metrics.read(workdir)
  again = train.run(finetune_tiny, workdir)
  assert again == result
  assert metrics.read(workdir) == before


def test_killed_run_ends_with_the_same_bits(
  pretrained, pretrain_tiny, command_line, tmp_path
):
  """The command line, killed with SIGKILL after a checkpoint."""
  flags = command_line(pretrain_tiny, tmp_path)
  command = [sys.executable, "-m", "main", *flags]
  process = subprocess.Popen(command, cwd=ROOT, env=os.environ)
  while not (tmp_path / "checkpoints" / "2").exists():
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  subprocess.run(command, cwd=ROOT, check=True, env=os.environ)
  result = json.loads((tmp_path / "result.json").read_text())
  assert result["state_sha256"] == pretrained[1]["state_sha256"]
  steps = [line["step"] for line in metrics.read(tmp_path)]
  assert steps == list(range(1, 10))


def test_terminated_run_saves_and_says_so(finetune_tiny, tmp_path, monkeypatch):
  """SIGTERM before the first step: one step, one checkpoint, a sentence."""
  real = load.open_data

  def open_data(config, mesh, dataset=None):
    config, dataset, source = real(config, mesh, dataset)
    chosen = source.items(0)

    def generate(start):
      os.kill(os.getpid(), signal.SIGTERM)
      yield from chosen

    return config, dataset, dataclasses.replace(source, items=generate)

  monkeypatch.setattr(load, "open_data", open_data)
  with pytest.raises(KeyboardInterrupt, match="stopped at step 1 of 9"):
    train.run(finetune_tiny, tmp_path)
  assert (tmp_path / "checkpoints" / "1").exists()
  assert not (tmp_path / "result.json").exists()


def test_not_finite_stops_with_step_and_checkpoint(
  finetune_tiny, tmp_path, monkeypatch
):
  make = finetune.make_step

  def broken(parts):
    step = make(parts)

    def train_step(state, batch):
      state, values = step(state, batch)
      loss = jax.numpy.where(state.step == 5, jax.numpy.nan, values["loss"])
      return state, values | {"loss": loss}

    return train_step

  monkeypatch.setattr(finetune, "make_step", broken)
  with pytest.raises(UserError, match=r"loss is not finite at step 5; .*/4;"):
    train.run(finetune_tiny, tmp_path)
  assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4]
  assert not (tmp_path / "checkpoints" / "6").exists()


def spoil_images(monkeypatch, first, last):
  """Makes fine-tuning's images NaN in some steps."""
  real = finetune.update

  def update(parts, state, images, targets, key):
    step = state.step + 1
    bad = (first <= step) & (step <= last)
    images = jax.numpy.where(bad, jax.numpy.nan, images)
    return real(parts, state, images, targets, key)

  monkeypatch.setattr(finetune, "update", update)


def test_steps_that_are_not_finite_are_skipped(
  finetune_tiny, tmp_path, monkeypatch, capsys
):
  spoil_images(monkeypatch, 5, 6)
  finetune_tiny.on_nonfinite = "skip"
  train.run(finetune_tiny, tmp_path)
  lines = metrics.read(tmp_path)
  assert [x["step"] for x in lines if "skipped" in x] == [5, 6]
  assert [x["step"] for x in lines if "loss" not in x] == [5, 6]
  before, after = (
    checkpoints.read(tmp_path / "checkpoints" / name)[0] for name in "89"
  )
  assert (before["step"], after["step"]) == (8, 9)
  leaves = jax.tree.leaves(after["params"])
  assert all(np.isfinite(x).all() for x in leaves)
  said = capsys.readouterr().err
  assert said.count("is skipped") == 1
  assert "the gradient of 0/" in said


def test_ten_steps_in_a_row_are_not_skipped(
  finetune_tiny, tmp_path, monkeypatch
):
  spoil_images(monkeypatch, 3, 99)
  finetune_tiny.update(on_nonfinite="skip", epochs=6)
  words = r"the gradient of 0/.* is not finite at step 12; .* is .*/10;"
  with pytest.raises(UserError, match=words):
    train.run(finetune_tiny, tmp_path)


def test_what_has_changed_is_said(
  trained, finetune_tiny, tmp_path, monkeypatch, capsys
):
  """Other packages, and lines of metrics that the run has not written."""
  with finetune_tiny.unlocked():
    finetune_tiny.max_steps = 4
  train.run(finetune_tiny, tmp_path)
  file = tmp_path / "metrics.jsonl"
  file.write_text(file.read_text().replace('"loss": 0.', '"loss": 1.'))
  real = checkpoints.environment()
  other = real | {"versions": real["versions"] | {"jax": "0.0.1"}}
  monkeypatch.setattr(checkpoints, "environment", lambda: other)
  with finetune_tiny.unlocked():
    finetune_tiny.max_steps = 0
  result = train.run(finetune_tiny, tmp_path)
  said = capsys.readouterr().err
  assert "resuming with jax 0.0.1" in said
  assert "is not what the run has written" in said
  assert result["state_sha256"] == trained[1]["state_sha256"]


def test_workdir_of_another_run(trained, finetune_tiny):
  workdir, _ = trained
  finetune_tiny.optim.learning_rate = 0.5
  finetune_tiny.log_every_steps = 7  # may change
  with pytest.raises(
    UserError, match=r"optim.learning_rate \(0.001 there, 0.5"
  ):
    train.run(finetune_tiny, workdir)


@pytest.mark.parametrize("text", ['{"epochs": 3}', '{"format": 1}', "[]"])
def test_workdir_of_another_version(text, make_workdir, finetune_tiny):
  workdir = make_workdir("pretrain", "vit", ["a", "b"])
  (workdir / "config.json").write_text(text)
  words = "is a run of another version of vit-ssl-jax"
  with pytest.raises(UserError, match=words):
    train.run(finetune_tiny, workdir)
  finetune_tiny.init_from = str(workdir)
  with pytest.raises(UserError, match=words):
    train.run(finetune_tiny, workdir.parent / "new")
  assert not (workdir.parent / "new").exists()


def test_finetuning_starts_from_the_teacher(
  pretrained, finetune_tiny, tmp_path
):
  workdir, _ = pretrained
  finetune_tiny.update(init_from=str(workdir), max_steps=1)
  finetune_tiny.optim.min_learning_rate = 0.0  # so that step 1 changes nothing
  train.run(finetune_tiny, tmp_path)
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
def test_init_from_another_model(
  pretrained, finetune_tiny, tmp_path, changes, words
):
  finetune_tiny.init_from = str(pretrained[0])
  finetune_tiny.model.update(changes)
  with pytest.raises(UserError, match=words):
    train.run(finetune_tiny, tmp_path / "new")


def test_init_from_nowhere(finetune_tiny, tmp_path):
  finetune_tiny.init_from = str(tmp_path / "nothing")
  with pytest.raises(UserError, match="no file or folder"):
    train.run(finetune_tiny, tmp_path / "new")
  (tmp_path / "empty").mkdir()
  finetune_tiny.init_from = str(tmp_path / "empty")
  with pytest.raises(UserError, match="neither a workdir nor"):
    train.run(finetune_tiny, tmp_path / "new")


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"evaluate_batch_size": 0}, "evaluate_batch_size=0 has to be a whole"),
    ({"keep_every_epochs": -1}, "keep_every_epochs=-1 has to be a whole"),
    ({"batch_size": 15}, "is not a multiple of the 2 devices"),
    ({"batch_size": 64}, "from 1 to 48"),
    ({"dtype": "float16"}, "did you mean 'bfloat16'"),
    ({"max_steps": -1}, "max_steps=-1"),
    ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
  ],
)
def test_values_that_make_no_sense(finetune_tiny, tmp_path, changes, words):
  finetune_tiny.update(changes)
  with pytest.raises(UserError, match=words):
    train.run(finetune_tiny, tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize(
  ("arch", "changes", "words"),
  [
    ("vit", {"image_size": 10}, "=10 is not a multiple of model.patch_size=4"),
    ("swin", {"image_size": 6}, "makes 3 patches a side"),
    ("swin", {"window_size": 5}, "window_size=5 must be at most 4"),
    ("swin", {"depths": (2, 0)}, r"model.depths=\(2, 0\) has to be whole"),
    ("swin", {"num_heads": (1, 0)}, r"num_heads=\(1, 0\) has to be a whole"),
    ("vit", {"patch_size": 0}, "patch_size=0 has to be a whole number"),
    ("vit", {"mlp_ratio": 0.0}, "mlp_ratio=0.0 has to be a number in"),
    ("cait", {"num_heads": 3}, "3 heads do not divide a width of 8"),
    ("cait", {"locality": "both"}, "model.locality='both' has to be ''"),
    ("cait", {"drop_path_rate": 1.0}, "model.drop_path_rate=1.0"),
  ],
)
def test_models_that_make_no_sense(
  stage, arch, changes, words, make_tiny, tmp_path, monkeypatch
):
  """They are refused before data is read, and before anything compiles."""
  monkeypatch.setattr(load, "open_data", None)
  config = make_tiny(stage, arch)
  config.model.update(changes)
  with pytest.raises(UserError, match=words):
    train.run(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_dense_relative_localization_is_not_for_cait(make_tiny, tmp_path):
  config = make_tiny("finetune", "cait")
  config.drloc.enabled = True
  with pytest.raises(UserError, match="is for vit and swin, not for cait"):
    train.run(config, tmp_path)


@pytest.mark.parametrize(
  ("key", "value", "words"),
  [
    ("global_scale", (0.5, 1.2), r"views.global_scale=\(0.5, 1.2\) has to be"),
    ("local_scale", (0.0, 0.5), r"views.local_scale=\(0.0, 0.5\) has to be"),
    ("local_size", 6, "views.local_size=6 is not a multiple of model.patch_s"),
  ],
)
def test_views_that_make_no_sense(pretrain_tiny, tmp_path, key, value, words):
  pretrain_tiny.views[key] = value
  with pytest.raises(UserError, match=words):
    train.run(pretrain_tiny, tmp_path)


def test_a_hopeless_run_is_stopped(pretrain_tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(alarms, "of_collapse", lambda *_: "no signal")
  pretrain_tiny.on_collapse = "stop"
  with pytest.raises(UserError, match="stopped at step 1: no signal"):
    train.run(pretrain_tiny, tmp_path)
  monkeypatch.undo()
  assert train.run(pretrain_tiny, tmp_path)["step"] == 9


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


def test_npz_run_imports_no_tensorflow(finetune_tiny, tmp_path):
  finetune_tiny.update(tensorboard=True, max_steps=1)
  code = """
import json, sys, ml_collections
from vit_ssl_jax import train
train.run(ml_collections.ConfigDict(json.loads(sys.argv[1])), sys.argv[2])
assert "tensorflow" not in sys.modules
"""
  command = [sys.executable, "-c", code, finetune_tiny.to_json()]
  subprocess.run([*command, str(tmp_path)], cwd=ROOT, check=True)
