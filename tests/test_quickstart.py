"""The whole method in one command, on custom images."""

import json

import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax import models, quickstart
from vit_ssl_jax.train import timing


@pytest.fixture
def photos(tmp_path):
  """A folder of 2 x 40 images of 8 pixels, dark and bright."""
  rng = np.random.default_rng(0)
  for name, low in (("bright", 120), ("dark", 0)):
    folder = tmp_path / "photos" / name
    folder.mkdir(parents=True)
    for i in range(40):
      pixels = rng.integers(low, low + 128, (8, 8, 3)).astype(np.uint8)
      Image.fromarray(pixels).save(folder / f"{i}.png")
  return tmp_path / "photos"


@pytest.fixture
def quick(monkeypatch):
  """A tiny network and a known speed."""
  tiny = {"embed_dim": 8, "depth": 1, "num_heads": 2}
  for key, value in tiny.items():
    monkeypatch.setitem(models.ARCHITECTURES["vit"].small, key, value)
  monkeypatch.setattr(timing, "rate", lambda *_: 20.0)
  monkeypatch.setattr(quickstart, "FRACTIONS", (1.0,))


def test_from_a_folder_to_a_table(photos, quick, tmp_path, capsys):
  out = tmp_path / "out"
  arguments = [f"--dataset=folder:{photos}", "--budget=50s", f"--out={out}"]
  quickstart.main([*arguments, "--seed=3"])
  printed = capsys.readouterr()
  assert "training images: bright 32, dark 32" in printed.err
  assert "about 50 seconds, from --budget=50s" in printed.err
  assert "k-NN on features, %: teacher " in printed.out
  summary = json.loads((out / "summary.json").read_text())
  (run,) = summary["runs"]
  assert run.keys() == {"label_fraction", "top1_scratch", "top1_pretrained"}
  assert {"knn", "knn_raw_pixels", "knn_untrained", "seconds"} <= summary.keys()
  assert sum(summary["parts"].values()) <= summary["seconds"] + 1
  report = (out / "report.html").read_text()
  for name in ("pretrain", "finetune_scratch_100", "finetune_pretrained_100"):
    assert name in report
  for name in ("contact_sheet.png", "summary.png"):
    assert Image.open(out / name).size > (400, 200)
  scratch, pretrained = (
    json.loads((out / f"finetune_{x}_100" / "config.json").read_text())
    for x in ("scratch", "pretrained")
  )
  differ = {k for k in scratch if scratch[k] != pretrained[k]}
  assert differ == {"init_from"}  # as long, with the same network
  # Both stages hold out the same images.
  pretraining = json.loads((out / "pretrain" / "config.json").read_text())
  assert pretraining["split_seed"] == scratch["split_seed"] == 3


def test_a_budget_that_is_too_small_is_refused_first(
  photos, quick, tmp_path, capsys, monkeypatch
):
  monkeypatch.setitem(quickstart.SHARES, 1.0, 0.02)
  out = tmp_path / "out"
  with pytest.raises(SystemExit):
    quickstart.main(
      [f"--dataset=folder:{photos}", "--budget=2m", f"--out={out}"]
    )
  said = capsys.readouterr().err
  assert (
    "fine-tuning on 100% of the labels, within --budget=2m: budget=2s" in said
  )
  assert "is too little: to compile and time a step takes" in said
  assert not (out / "pretrain").exists()


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--dataset=cifar10"], "--dataset='cifar10' must be digits, folder:"),
    (["--dataset=folder:/nowhere"], "there is no folder '/nowhere'"),
    (["--dataset=npz:x.npz", "--budget=soon"], "a time such as"),
    (
      ["--dataset=npz:x.npz", "--budget=500"],
      "--budget='500' must be a time, such as 60m",
    ),
  ],
)
def test_bad_arguments_cost_one_sentence(arguments, words, tmp_path, capsys):
  with pytest.raises(SystemExit):
    quickstart.main([*arguments, f"--out={tmp_path / 'out'}"])
  assert words in capsys.readouterr().err
  assert not (tmp_path / "out" / "pretrain").exists()
