"""The same numbers on any number of devices, and with parameters split."""

import json

import processes
import pytest

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import mesh as sharding

# Replicated, split, and with a batch in parts.
SOME = ("8x1x1", "2x2x2")
ALL = ("2x1x1", "1x2x1", "4x1x1", "2x2x1", "8x1x1", "4x2x1", "2x4x1", "1x8x1")
ALL = (*ALL, "1x1x4", "2x2x2", "8x1x2")


@pytest.mark.parametrize(
  ("stage", "arch", "cases"),
  [
    ("pretrain", "vit", SOME),
    ("mae", "vit", SOME[1:]),
    ("finetune", "vit", SOME),
    *[
      pytest.param(stage, arch, ALL, marks=pytest.mark.long)
      for stage in ("pretrain", "finetune")
      for arch in ("vit", "swin", "cait")
    ],
  ],
)
def test_devices_and_parts_change_rounding_alone(
  stage, arch, cases, fork_server
):
  status, text = processes.Run(
    fork_server,
    [stage, arch, *cases],
    "import sys, devices; devices.main(*sys.argv[1:])",
    devices=8,
  ).wait()
  assert status == 0, text[-3000:]
  results = [json.loads(x) for x in text.splitlines() if x.startswith("{")]
  assert [x["case"] for x in results] == list(cases)
  for x in results:
    assert x["split"] == (x["case"].split("x")[1] != "1")
    assert x["loss"] < 1e-5, x
    # Adam's step does not shrink with the gradient, so rounding shows in
    # parameters that have none, the biases of keys.
    assert x["state"] < 1e-4, x


def test_what_the_devices_do_not_divide():
  with pytest.raises(
    UserError, match="batch_size=3 is not a multiple of the 2"
  ):
    sharding.make_mesh(1, 3)
  with pytest.raises(UserError, match=r"mesh\.fsdp=3 does not divide"):
    sharding.make_mesh(3, 6)
  with pytest.raises(
    UserError, match="accumulate_steps=4 does not divide the 3 images"
  ):
    sharding.make_mesh(1, 6, 4)
