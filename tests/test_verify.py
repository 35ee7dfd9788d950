"""A kernel is used only where it was found right and faster."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_ssl_jax.kernels import dispatch, verify
from vit_ssl_jax.parallel import hosts, mesh as meshes
from vit_ssl_jax.train import kernel_checks


def config(kernels="auto"):
  model = types.SimpleNamespace(image_size=3)
  return types.SimpleNamespace(kernels=kernels, batch_size=4, model=model)


def square(x, b):
  return x * x + b


@jax.custom_vjp
def wrong_gradient(x, b):
  return square(x, b)


wrong_gradient.defvjp(
  lambda x, b: (square(x, b), (x, b)),
  lambda saved, g: (1.9 * saved[0] * g, jnp.sum(g, 0, keepdims=True)),
)


def does_not_compile(x, b):
  raise NotImplementedError("no lowering for\nthis shape")


KERNELS = {
  "right": square,
  "wrong value": lambda x, b: 1.01 * square(x, b),
  "wrong gradient": wrong_gradient,
  "not finite": lambda x, b: square(x, b) / (x * 0),
  "does not compile": does_not_compile,
}


@pytest.fixture
def use(monkeypatch, tmp_path):
  """(function) -> a step that may use it as a kernel, on a pretended GPU."""
  monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
  monkeypatch.setattr(dispatch.jax, "device_count", lambda: 1)
  monkeypatch.setattr(dispatch, "policy", dispatch.Policy())
  monkeypatch.setattr(verify, "time_ratio", lambda *_: 0.5)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

  def make(function):
    kernel = dispatch.Kernel("test", lambda *_: True, function)

    def step(state, batch):
      x, b = batch["image"][:, :, 0, 0] / 255, jnp.ones((1, 3))
      return state, dispatch.dispatch({"gpu": [kernel]}, square, (x,), (b,))

    return step

  return make


def uses_kernel(step):
  """True if a program traced now uses only accepted calls."""
  with dispatch.recording() as calls:
    jax.eval_shape(step, 0.0, BATCH)
  return calls.keys() <= dispatch.policy.accepted


BATCH = {"image": np.arange(108, dtype=np.uint8).reshape(4, 3, 3, 3)}


@pytest.mark.parametrize("name", KERNELS)
def test_only_a_right_kernel_is_used(name, use, capsys):
  step = use(KERNELS[name])
  kernel_checks.select(config(), step, 0.0)
  assert uses_kernel(step) == (name == "right")
  line = capsys.readouterr().err.strip()
  assert line.startswith("kernel test float32[4, 3] float32[1, 3]: ")
  reason = {
    "right": ": used, faster: 0.50 of XLA's time; error",
    "does not compile": "not used, it does not run (no lowering for this shape",
  }
  assert reason.get(name, "not used, wrong: error") in line
  _, y = jax.jit(step)(0.0, BATCH)
  x = BATCH["image"][:, :, 0, 0] / 255
  np.testing.assert_allclose(y, square(x, 1.0), rtol=1e-6)


def test_a_kernel_is_checked_on_one_device_of_a_mesh(use):
  sizes = []

  def kernel(x, b):
    sizes.append((jax.sharding.get_abstract_mesh().size, len(x)))
    return square(x, b)

  step = use(kernel)
  with jax.set_mesh(meshes.mesh_of((2, 1), jax.devices())):
    kernel_checks.select(config(), step, 0.0)
    assert uses_kernel(step)
  assert (1, 2) in sizes


def test_a_slower_kernel_is_not_used(use, monkeypatch, capsys):
  monkeypatch.setattr(verify, "time_ratio", lambda *_: 1.3)
  step = use(square)
  kernel_checks.select(config(), step, 0.0)
  assert not uses_kernel(step)
  assert "not used, slower: 1.30 of XLA's time" in capsys.readouterr().err


def test_times_are_medians_of_rounds_that_take_turns(monkeypatch):
  clock = iter(
    np.cumsum([0, 1, 0, 4, 0, 1, 0, 4, 0, 90, 0, 4] + [0, 1, 0, 4] * 2)
  )
  monkeypatch.setattr(verify.time, "perf_counter", lambda: next(clock))
  assert verify.time_ratio(jnp.sin, jnp.cos, [1.0]) == 1 / 4


def test_without_a_check_no_kernel_is_used(use):
  assert not uses_kernel(use(square))
  kernel_checks.select(config("xla"), use(square), 0.0)
  assert dispatch.policy == dispatch.Policy("xla")


def test_processes_that_disagree_use_no_kernel(use, monkeypatch, capsys):
  def other_rejects(answers):
    other = {k: {"accepted": False, "reason": "slower"} for k in answers}
    return [answers, other]

  monkeypatch.setattr(hosts, "all_gather", other_rejects)
  step = use(square)
  kernel_checks.select(config(), step, 0.0)
  assert not uses_kernel(step)
  assert "not used, slower" in capsys.readouterr().err


def test_a_resume_uses_the_same_kernels(use, tmp_path, monkeypatch):
  step = use(square)
  kernel_checks.select(config(), step, 0.0, tmp_path)
  content = json.loads((tmp_path / "kernels.json").read_text())
  assert list(content) == [verify.environment()]
  monkeypatch.setattr(verify, "check", None)  # neither run again
  monkeypatch.setattr(verify, "verify", lambda calls, folder: {})
  kernel_checks.select(config(), step, 0.0, tmp_path)
  assert uses_kernel(step)


def test_checks_are_cached(use, tmp_path, monkeypatch):
  step = use(square)
  kernel_checks.select(config(), step, 0.0)
  monkeypatch.setattr(verify, "check", None)
  monkeypatch.setattr(dispatch, "policy", dispatch.Policy())
  kernel_checks.select(config(), step, 0.0, tmp_path)
  assert uses_kernel(step)
