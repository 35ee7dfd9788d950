"""Checks of kernels against XLA's forms, on the device that runs them.

A kernel is used where it was checked: `verify` runs each one on random inputs
of the program's own shapes, and accepts it only if its values and gradients are
right and it is faster.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from vit_ssl_jax import files
from vit_ssl_jax.kernels import dispatch

ROUNDS = 5
# Errors are relative to XLA's form in float32. A kernel's may be TIMES that of
# XLA's form in the kernel's type, or LEAST.
TIMES, LEAST = 2.0, 1e-5


def calls_of(function, *args):
  """Returns the calls that kernels would take in a program, by key.

  Args:
    function: is traced, in the mesh in use, and not run.
    *args: its arguments, arrays or their shapes.
  """
  with dispatch.recording() as calls:
    jax.eval_shape(function, *args)
  jax.clear_caches()  # inner traces without kernels
  return calls


def verify(calls, folder):
  """Checks calls, or reads what an earlier check has found.

  Args:
    calls: of `calls_of`.
    folder: of a cache, by device kind and versions.

  Returns:
    {key: {"accepted": bool, "reason": text}}, of every call.
  """
  path = folder / f"{environment()}.json"
  answers = json.loads(path.read_text()) if path.is_file() else {}
  for key, call in calls.items():
    if key not in answers:
      answers[key] = check(call)
  if calls:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, answers)
  return {key: answers[key] for key in calls}


def environment():
  """The device kind and versions that a check holds for."""
  device = jax.local_devices()[0]
  version = getattr(device.client, "platform_version", "")
  text = f"{device.device_kind} jax {jax.__version__} {version}"
  return "".join(x if x.isalnum() or x in ".-" else "_" for x in text)[:200]


def check(call):
  """Compares a kernel with XLA's form; returns its entry of `verify`."""
  # On one device: a run's mesh may have more, which kernels do not split over.
  device = np.array(jax.local_devices()[:1])
  with jax.set_mesh(Mesh(device, ("batch",), axis_types=(AxisType.Auto,))):
    return check_here(call)


def check_here(call):
  reference = gradients(call, call.reference)
  kernel = gradients(call, call.kernel.function)
  try:
    inputs = random_inputs(call)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
    with jax.default_matmul_precision("highest"):
      expected = jax.block_until_ready(gradients(call, call.reference)(*exact))
    errors = [
      relative_error(jax.block_until_ready(form(*inputs)), expected)
      for form in (kernel, reference)
    ]
  except Exception as e:  # of a compiler, a driver, or Pallas
    reason = f"it does not run ({' '.join(str(e).split())[:120]})"
    return {"accepted": False, "reason": reason}
  shown = f"error {errors[0]:.2g}, XLA's {errors[1]:.2g}"
  if not errors[0] <= max(TIMES * errors[1], LEAST):
    return {"accepted": False, "reason": f"wrong: {shown}"}
  ratio = time_ratio(kernel, reference, inputs)
  accepted = ratio < 1
  word = "faster" if accepted else "slower"
  reason = f"{word}: {ratio:.2f} of XLA's time; {shown}"
  return {"accepted": accepted, "reason": reason}


def random_inputs(call):
  """Arrays of a call's shapes, and the output's gradient."""
  tree = call.arrays, call.shared
  leaves, structure = jax.tree.flatten(tree)
  out = jax.eval_shape(reference_of(call, call.reference), *tree)
  keys = jax.random.split(jax.random.key(0), len(leaves) + 1)
  arrays = [
    jax.random.normal(k, x.shape).astype(x.dtype)
    for k, x in zip(keys, [*leaves, out], strict=True)
  ]
  return *jax.tree.unflatten(structure, arrays[:-1]), arrays[-1]


def reference_of(call, form):
  return lambda arrays, shared: form(*arrays, *shared, **call.options)


def gradients(call, form):
  """Jits (arrays, shared, g) -> the output and all gradients."""

  def run(arrays, shared, g):
    out, pull = jax.vjp(reference_of(call, form), arrays, shared)
    return out, pull(g.astype(out.dtype))

  return jax.jit(run)


def relative_error(actual, expected):
  """The largest L2 error of a tensor over its norm; inf where not finite.

  A norm counts as at least 1 % of the largest root mean square, for gradients
  that vanish in exact arithmetic.
  """
  actual, expected = (
    [x.astype(jnp.float32) for x in jax.tree.leaves(t)]
    for t in (actual, expected)
  )
  least = 0.01 * max(jnp.sqrt(jnp.mean(x**2)) for x in expected)
  error = jnp.stack(
    [
      jnp.linalg.norm(a - b)
      / jnp.maximum(jnp.linalg.norm(b), least * jnp.sqrt(b.size))
      for a, b in zip(actual, expected, strict=True)
    ]
  ).max()
  return float(error) if jnp.isfinite(error) else float("inf")


def time_ratio(kernel, reference, inputs):
  """The kernel's time over XLA's, by medians of rounds that take turns."""
  seconds = {kernel: [], reference: []}
  for _ in range(ROUNDS):
    for form, times in seconds.items():
      began = time.perf_counter()
      jax.block_until_ready(form(*inputs))
      times.append(time.perf_counter() - began)
  kernel_time, reference_time = map(statistics.median, seconds.values())
  return kernel_time / reference_time
