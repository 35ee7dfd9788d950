"""The recipe for custom data sets."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax import recipes, train
from vit_ssl_jax.data import facts
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import custom, schema
from vit_ssl_jax.run import checkpoints
from vit_ssl_jax.train import finetune, resolve, timing

FEW = facts.Facts(images=1920, classes=8, side=32)


def filled(stage="pretrain", arch="vit", found=FEW, passes=None, **given):
  config = recipes.get(stage, f"{arch},folder:/x")
  config.update_from_flattened_dict(given)
  rows = custom.resolve(config, found, small=True, passes=passes)
  return config, {key: (value, why) for key, value, why in rows}


@pytest.mark.parametrize("arch", ["vit", "swin", "cait"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("side", [8, 28, 32, 64, 500])
@pytest.mark.parametrize("images", [2, 500, 50_000])
def test_any_set_gets_a_recipe_that_fits(arch, stage, side, images):
  for small in (True, False):
    config = recipes.get(stage, f"{arch},npz:x.npz")
    assert schema.is_unset(config)
    schema.set_remat(config, small)
    custom.resolve(config, facts.Facts(images, 3, side), small=small)
    assert not schema.is_unset(config)
    schema.check(config)


def test_a_recipe_of_the_paper_is_left_alone(tmp_path, capsys):
  config = recipes.get("pretrain", "cait,digits")
  resolved = resolve.resolve(config, tmp_path)
  assert (config.remat, resolved.remat) == (None, False)
  assert not capsys.readouterr().err


def test_what_is_given_stays_and_the_others_follow():
  plain, _ = filled()
  config, rows = filled(**{"model.image_size": 64, "epochs": 50})
  assert config.model.image_size == 64
  assert rows["model.image_size"] == (64, "set by you")
  assert config.views.global_size == 64
  assert config.model.patch_size == 2 * plain.model.patch_size
  assert config.epochs == 50
  assert config.optim.warmup_epochs < plain.optim.warmup_epochs
  assert config.teacher.momentum < plain.teacher.momentum


def test_views_follow_from_the_objective():
  mae, _ = filled()
  assert mae.objective == "mae"
  assert not any(mae.views.blur_probability)
  for config in (filled(objective="views")[0], filled(arch="swin")[0]):
    assert (config.objective, config.views.local_views) == ("views", 4)
    assert config.views.color_jitter_probability == 0.8
    assert config.optim.learning_rate < mae.optim.learning_rate


def test_the_rate_of_fine_tuning_follows_the_batch():
  for batch, rate in ((32, 0.001), (128, 0.004)):
    config, _ = filled("finetune", batch_size=batch)
    assert config.optim.learning_rate == rate
  config, _ = filled("finetune", **{"optim.name": "adamw"})
  assert config.optim.learning_rate == 0.001


def test_long_fine_tunings_mix_their_images():
  for epochs, probability in ((20, 0.0), (60, 0.5)):
    config, _ = filled("finetune", epochs=epochs)
    assert config.mix.probability == probability


def test_a_budget_of_steps():
  config, _ = filled(passes=64 * 300)
  assert config.epochs == 10  # 19,200 passes of 1,920 images
  assert config.optim.warmup_epochs == 1
  short, _ = filled("finetune", passes=10**9)
  assert short.epochs == 68
  few = facts.Facts(images=50, classes=2, side=32)
  assert filled("finetune", found=few)[0].epochs == custom.MOST_TUNING


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_shortened_runs_of_the_paper_shrink_their_warm_ups(stage):
  config = recipes.get(stage, "vit,cifar10")
  assert config.optim.warmup_epochs == 30
  config.epochs = 2
  assert config.optim.warmup_epochs == 0
  schema.check(config)


@pytest.mark.parametrize(
  ("text", "seconds"),
  [("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("45s", 45), ("5000", None)],
)
def test_budgets(text, seconds):
  assert resolve.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "soon", "30 m", "-5", "1.5h"])
def test_budgets_that_make_no_sense(text):
  with pytest.raises(UserError, match="must be a time such as 30m"):
    resolve.seconds_of(text)


@pytest.fixture
def pictures(tmp_path):
  """24 images of 20 x 12 pixels in folders of two classes, and a broken one."""
  rng = np.random.default_rng(0)
  for name in ("cat", "dog"):
    folder = tmp_path / "images" / name
    folder.mkdir(parents=True)
    for i in range(12):
      pixels = rng.integers(0, 255, (12, 20, 3), np.uint8)
      Image.fromarray(pixels).save(folder / f"{i}.png")
  (folder / "broken.png").write_bytes(b"no image")
  return tmp_path / "images"


def test_facts_of_a_folder(pictures):
  config = recipes.get("pretrain", f"vit,folder:{pictures}")
  assert facts.look(config) == facts.Facts(images=20, classes=2, side=12)
  config.data_fraction = 0.5
  assert facts.look(config).images == 10


def test_facts_of_an_npz(tiny_npz):
  config = recipes.get("finetune", f"vit,{tiny_npz}")
  assert facts.look(config) == facts.Facts(images=48, classes=2, side=8)
  config.dataset = "npz:/nowhere.npz"
  with pytest.raises(UserError, match="nowhere"):
    facts.look(config)


def small_recipe(stage, dataset):
  config = recipes.get(stage, f"vit,{dataset}")
  config.update_from_flattened_dict(
    {"model.embed_dim": 8, "model.depth": 1, "model.num_heads": 2}
  )
  if stage == "pretrain":
    config.views.local_views = 1
  config.evaluate_batch_size = 16
  return config


def test_a_run_says_and_keeps_its_recipe(tiny_npz, tmp_path, capsys):
  config = small_recipe("pretrain", tiny_npz)
  config.budget = "3"
  result = train.run(config, tmp_path / "A")
  said = capsys.readouterr().err
  assert "recipe for 48 training images in 2 classes" in said
  assert "model.image_size" in said
  assert "before training: knn_untrained" in said
  saved = json.loads((tmp_path / "A" / "config.json").read_text())
  assert saved["model"]["image_size"] == 16
  assert saved["epochs"] == 2  # 3 steps of 32 images
  # A masked autoencoder has neither keys nor state of view prediction.
  assert saved["objective"] == "mae"
  assert "head" not in saved
  assert "centering" not in saved["teacher"]
  assert "center" not in checkpoints.read(tmp_path / "A")[0]
  assert {"knn_raw_pixels", "knn_untrained", "knn"} <= result.keys()
  # The same command finds its recipe in the workdir.
  assert train.run(config, tmp_path / "A") == result

  tuning = recipes.get("finetune", f"vit,{tiny_npz}")
  tuning.update(init_from=str(tmp_path / "A"), budget="2")
  tuning = resolve.resolve(tuning, tmp_path / "B")
  assert tuning.model.embed_dim == 8  # the teacher's


def test_a_budget_of_time_is_measured(tiny_npz, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(timing, "rate", lambda *_: 10.0)
  config = small_recipe("pretrain", tiny_npz)
  config.budget = "60s"
  found = resolve.resolve(config, tmp_path)
  assert found.epochs == round(60 * resolve.SHARE * 10 / 48)
  assert "10 images/s" in capsys.readouterr().err
  config.budget = "5s"
  with pytest.raises(UserError, match="an epoch of 48 images 5 seconds"):
    resolve.resolve(config, tmp_path)
  assert not (tmp_path / "config.json").exists()


def test_the_rate_is_that_of_the_steps_made(tiny_npz, monkeypatch):
  clock = itertools.count(0, 0.5)  # half a second between looks at it
  monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
  config = small_recipe("finetune", tiny_npz)
  custom.resolve(config, facts.Facts(48, 2, 8), small=True)
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  found = timing.rate(config, finetune.make_stage, 2, 2)
  assert found == 3 * config.batch_size / 2.5


def test_another_stage_in_the_workdir_is_another_run(tiny_npz, tmp_path):
  config = small_recipe("pretrain", tiny_npz)
  (tmp_path / "config.json").write_text(
    schema.dump(recipes.get("finetune", "vit,cifar10"))
  )
  with pytest.raises(UserError, match="holds another run"):
    train.run(config, tmp_path)
