"""Runs that hold something out, keep a share, or find their set changed."""

import json

import numpy as np
import pytest

from vit_ssl_jax import train
from vit_ssl_jax.data import load
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import accuracy as accuracies
from vit_ssl_jax.run import checkpoints, metrics


@pytest.fixture
def held_out(finetune_tiny):
  """A fine-tuning that chooses its best epoch on a quarter of the images."""
  finetune_tiny.update(val_fraction=0.25, batch_size=12, keep_every_epochs=0)
  finetune_tiny.update(keep_last=1, checkpoint_every_steps=100)
  return finetune_tiny


@pytest.mark.parametrize("stop", [0, 7])
def test_best_epoch_is_chosen_without_the_test_images(
  held_out, tmp_path, monkeypatch, stop
):
  """The second of three epochs is the best by validation, not by test.

  So it is in a run that was stopped between epochs and evaluated there.
  """
  figures = {"top1": [90.0, 40.0, 60.0], "val_top1": [20.0, 70.0, 70.0]}
  if stop:
    figures = {k: [*v[:2], 99.0, v[2]] for k, v in figures.items()}
  real = accuracies.percent_correct

  def accuracy(logits, labels):
    assert 0 <= real(logits, labels) <= 100
    return figures[{20: "top1", 12: "val_top1"}[len(labels)]].pop(0)

  monkeypatch.setattr(accuracies, "percent_correct", accuracy)
  if stop:
    held_out.max_steps = stop
    assert train.run(held_out, tmp_path)["top1"] == 99.0
    held_out.max_steps = 0
  result = train.run(held_out, tmp_path)
  assert (result["top1"], result["best_top1_on_test"]) == (60.0, 90.0)
  assert result["best_val_top1"] == 70.0
  assert result["top1_at_best_val"] == 40.0
  assert (result["epoch_at_best_val"], result["step_at_best_val"]) == (2, 6)
  # Its weights are kept, beside the last ones.
  kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
  assert kept == [6, 9]
  lines = metrics.read(tmp_path)
  assert [x["val_top1"] for x in lines if "val_top1" in x] == [20.0, 70.0, 70.0]
  state, config = checkpoints.read(tmp_path / "checkpoints" / "6")
  assert state["step"] == 6
  # What the config left to the set stands there in numbers.
  about = json.loads((tmp_path / "dataset.json").read_text())
  assert config["mean"] == about["mean"] != []
  assert about["images"] == {"train": 36, "val": 12, "test": 20}
  assert about["classes"] == ["0", "1"]


def test_validation_without_a_best_epoch_says_nothing():
  lines = [{"step": 1, "epoch": 1, "top1": 50.0}]
  assert metrics.best_on_val(lines, "top1") == {}


def test_neighbours_of_validation_images(pretrain_tiny, tmp_path):
  pretrain_tiny.update(val_fraction=0.25, epochs=2, batch_size=12)
  result = train.run(pretrain_tiny, tmp_path)
  lines = [line for line in metrics.read(tmp_path) if "val_knn" in line]
  assert [line["epoch"] for line in lines] == [1, 2]
  assert result["best_val_knn"] == max(line["val_knn"] for line in lines)


@pytest.mark.parametrize(("keeps", "steps"), [("epochs", 2), ("steps", 4)])
def test_a_share_keeps_epochs_or_steps(
  finetune_tiny, keeps, steps, one_device_mesh
):
  finetune_tiny.update(data_fraction=0.5, data_fraction_keeps=keeps)
  finetune_tiny.batch_size = 12
  _, dataset, source = load.open_data(finetune_tiny, one_device_mesh)
  assert len(dataset.train_images) == 24
  assert source.steps_per_epoch == steps
  items = source.items(0)
  passes = [np.concatenate([next(items), next(items)]) for _ in range(4)]
  for one in passes:  # each over all of the share
    assert sorted(one) == list(range(24))
  assert (passes[0] != passes[1]).any()


def test_a_set_that_changed_since(finetune_tiny, tmp_path):
  finetune_tiny.max_steps = 1
  train.run(finetune_tiny, tmp_path)
  about = tmp_path / "dataset.json"
  found = json.loads(about.read_text())
  about.write_text(json.dumps(found | {"sha256": {}}))
  finetune_tiny.max_steps = 2
  with pytest.raises(
    UserError, match=r"changed since .* was created: its images or labels"
  ):
    train.run(finetune_tiny, tmp_path)


def test_what_is_said_of_a_set(finetune_tiny, one_device_mesh, capfd):
  finetune_tiny.update(val_fraction=0.25, placement="host")
  load.open_data(finetune_tiny, one_device_mesh)
  said = " ".join(capfd.readouterr().err.split())
  assert (
    "tiny.npz: 36 training, 12 validation, 20 test images of 8 x 8 in 2"
    " classes; the training images take 0.0 MB, kept in memory and streamed"
  ) in said
