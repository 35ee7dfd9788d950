"""Tables and pictures."""

import jax
import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax import files, models
from vit_ssl_jax.report import pictures, tables


def test_table_lines_up():
  text = tables.table(("labels", "top-1"), [("all", 98.125), ("10%", None)])
  assert text.splitlines() == [
    "labels  top-1",
    "------  -----",
    "all     98.12",
    "10%         -",
  ]


@pytest.mark.parametrize("arch", ["vit", "swin", "cait"])
def test_attention_maps_share_out_what_there_is(arch, make_tiny):
  config = make_tiny("pretrain", arch)
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  model = models.from_config(config, 0)
  params = models.init(model, jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
  maps = pictures.attention_maps(config, params, images)
  assert maps.shape == (3, 2, 2)
  assert (maps > 0).all()
  if arch == "swin":
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
  else:  # the class token keeps some for itself
    assert (maps.sum((1, 2)) < 1).all()


def test_summary_is_a_picture(pretrain_tiny, tmp_path):
  pretrain_tiny.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  model = models.from_config(pretrain_tiny, 0)
  params = models.init(model, jax.random.key(0))
  for name, value in (("pretrain", "knn"), ("tune", "top1")):
    (tmp_path / name).mkdir()
    lines = [
      f'{{"step": {i}, "epoch": {i}, "loss": 1.5, "{value}": 50, "seconds": 1}}'
      for i in (1, 2)
    ]
    files.write(tmp_path / name / "metrics.jsonl", "\n".join(lines) + "\n")
  images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
  pictures.summary(
    tmp_path / "summary.png",
    pretrain_tiny,
    params,
    images,
    tmp_path / "pretrain",
    {"from scratch": tmp_path / "tune"},
  )
  picture = Image.open(tmp_path / "summary.png")
  assert picture.size == (1200, 900)
  assert len(picture.getcolors(1_000_000)) > 50
