"""Shared by all tests: two CPU devices, strict JAX, a compilation cache."""

import importlib.metadata
import json
import os
import pathlib
import shlex
import sys
import tempfile

# Before JAX starts: two devices, so that every test also tests sharding, and
# machine code that is not optimised, which takes half the time to compile; the
# environment may say otherwise (XLA_FLAGS=--xla_backend_optimization_level=3).
os.environ.setdefault("TEST_DEVICES", "2")
os.environ["XLA_FLAGS"] = " ".join(
  [
    "--xla_backend_optimization_level=0",
    # jaxlib 0.11 has no such flag.
    "--xla_cpu_use_fusion_emitters=false"
    * (importlib.metadata.version("jaxlib") < "0.11"),
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=" + os.environ["TEST_DEVICES"],
  ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import processes
import pytest
import tiny

from vit_ssl_jax import models, train
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.recipes import (
  schema,
)
from vit_ssl_jax.run import checkpoints

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
  "jax_compilation_cache_dir",
  str(pathlib.Path(tempfile.gettempdir(), "vit_ssl_jax_test_cache")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  """Keeps what tests decode and prepare out of the user's cache."""
  folder = tmp_path_factory.getbasetemp() / "cache"
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture
def golden_dir():
  """The folder of golden numbers: $GOLDEN_DIR, or the one beside the tests."""
  here = pathlib.Path(__file__).parent / "golden"
  return pathlib.Path(os.environ.get("GOLDEN_DIR", here))


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory):
  """config.dataset of the set that `tiny.write_npz` writes."""
  path = tmp_path_factory.mktemp("npz") / "tiny.npz"
  tiny.write_npz(path)
  return f"npz:{path}"


@pytest.fixture(scope="session")
def torch():
  """PyTorch, made ready for timm and transformers to be imported.

  They import torchvision, of which nothing is used here. Where its build is
  for another version of PyTorch, two of its operators have to be named first.
  """
  # TensorFlow and triton each bring LLVM, and one process holds only one.
  sys.modules.setdefault("triton", None)
  torch = pytest.importorskip("torch")
  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      library.define(
        f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
      )
    torch.torchvision_library = library  # which lives as long as this does
  return torch


@pytest.fixture
def one_device_mesh():
  """A mesh of the first device alone."""
  return meshes.one_device_mesh()


@pytest.fixture(scope="session")
def make_tiny(tiny_npz):
  """(stage, arch) -> a `tiny.config` on the set of `tiny_npz`."""
  return lambda stage, arch: tiny.config(stage, arch, tiny_npz)


@pytest.fixture(scope="session")
def fork_server():
  """`processes.fork_server`'s context."""
  return processes.fork_server()


@pytest.fixture(scope="session")
def trained(make_tiny, tmp_path_factory):
  """A finished fine-tuning from scratch: its workdir and its result."""
  workdir = tmp_path_factory.mktemp("trained")
  return workdir, train.run(make_tiny("finetune", "vit"), workdir)


@pytest.fixture(scope="session")
def make_workdir(make_tiny, tmp_path_factory):
  """(stage, arch, classes) -> a run's folder, of weights nowhere zero."""

  def make(stage, arch, classes, locality="", scale=0.2, **changes):
    config = make_tiny(stage, arch)
    config.update(mean=(0.5,) * 3, std=(0.25,) * 3, **changes)
    config.model.locality = locality
    model = models.from_config(
      config, len(classes) if stage == "finetune" else 0
    )
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: np.float32(scale * rng.standard_normal(x.shape)), shapes
    )
    state = {"step": np.full((), 7, np.int32), "params": params}
    if stage == "pretrain":
      state = {"step": state["step"], "teacher": {"backbone": params}}
    workdir = tmp_path_factory.mktemp(f"{stage}_{arch}")
    about = {"classes": classes, "images": {"train": 48, "val": 0, "test": 20}}
    (workdir / "config.json").write_text(schema.dump(config))
    recipe = f"configs/{stage}.py:{arch},{config.dataset}"
    command = ["python", "-m", "main", f"--config={recipe}"]
    if changes.get("init_from"):
      command.append(f"--config.init_from={changes['init_from']}")
    command.append(f"--workdir={workdir}")
    (workdir / "command.txt").write_text(shlex.join(command) + "\n")
    for name, content in (
      ("dataset", about),
      ("result", {"top1": 87.5, "step": 7, "versions": {"jax": "0.10"}}),
    ):
      (workdir / f"{name}.json").write_text(json.dumps(content))
    with checkpoints.manager(workdir, 1, 0) as saver:
      checkpoints.save(saver, 7, state)
    return workdir

  return make


@pytest.fixture
def pretrain_tiny(make_tiny):
  """A pretraining of ViT on the tiny set."""
  return make_tiny("pretrain", "vit")


@pytest.fixture
def finetune_tiny(make_tiny):
  """A fine-tuning of ViT on the tiny set, without AutoAugment."""
  return make_tiny("finetune", "vit")
