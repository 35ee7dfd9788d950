"""Shared by all tests: two CPU devices, strict JAX, a compilation cache."""

import os
import pathlib
import tempfile

# Before JAX starts: two devices, so that every test also tests sharding.
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=2",
  ]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

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
