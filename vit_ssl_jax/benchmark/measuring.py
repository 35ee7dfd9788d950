"""Times a step with and without augmentation, and describes its program."""

import statistics
import time

import jax
import numpy as np

from vit_ssl_jax import files, models, sharding
from vit_ssl_jax.benchmark import hlo, inspection, profiling, steps
from vit_ssl_jax.benchmark.counting import count_flops

# Dense bfloat16 operations a second, by the beginning of a device's kind, from
# its maker's data sheet.
PEAK = {
  "NVIDIA H100 80GB HBM3": 989e12,  # the one with SXM
  "NVIDIA H200": 989e12,
  "NVIDIA A100": 312e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
}
WARM_UP = 2  # steps


def measure(config, steps, rounds):
  """As `measure_all`, of one config: its figures."""
  return measure_all([config], steps, rounds)[0]


def measure_all(configs, steps, rounds, profile=False, trace="", text=""):
  """Measures the steps of some configs, whose rounds take turns.

  Args:
    configs: of either stage, with mean and std.
    steps: how many are timed together.
    rounds: how often.
    profile: whether to look where the time of a step goes.
    trace: a folder for the profile's trace, or "".
    text: a file for the compiled program's text, or "".

  Returns:
    For each config its figures, a dict.

  Raises:
    UserError: a batch cannot be split over the devices.
  """
  measured = [Measured(config) for config in configs]
  runs = [run for one in measured for run in one.runs.values()]
  for run in runs:
    run.go(WARM_UP)
  for _ in range(rounds):
    for run in runs:
      run.rounds.append(run.go(steps) / steps)
  if text:
    measured[0].write_text(text)
  found = [one.figures() for one in measured]
  if profile:
    for figures, one in zip(found, measured, strict=True):
      figures["profile"] = profiling.profile(one.runs[True], trace)
  return found


class Measured:
  """A config's step, with and without augmentation.

  Attributes:
    config: the config.
    runs: augmented -> its `Timed`.
    flops: of a step's matrix products.
  """

  def __init__(self, config):
    self.config = config
    self.runs = {}
    mesh = sharding.make_mesh(
      config.mesh.fsdp, config.batch_size, config.accumulate_steps
    )
    batch = random_batch(config, sharding.batch_sharding(mesh))
    for augmented in (True, False):
      init, step = steps.stage(config, augmented, mesh)
      shardings = sharding.state_sharding(mesh, jax.eval_shape(init))
      state = jax.jit(init, out_shardings=shardings)()
      step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
      traced = step.trace(state, batch)
      # Of the last: without augmentation.
      self.flops = count_flops(traced.jaxpr.jaxpr)
      began = time.perf_counter()
      lowered = traced.lower()
      compiled = lowered.compile()
      seconds = time.perf_counter() - began
      self.runs[augmented] = Timed(lowered, compiled, state, batch, seconds)

  def write_text(self, path):
    """Writes the compiled step's text."""
    files.write(path, self.runs[True].compiled.as_text())

  def figures(self):
    """What the rounds and the program give."""
    config, run = self.config, self.runs[True]
    taken = {k: statistics.median(r.rounds) for k, r in self.runs.items()}
    count = config.batch_size
    kind = jax.devices()[0].device_kind
    peak = next((v for k, v in PEAK.items() if kind.startswith(k)), None)
    rate = self.flops / taken[True]
    return {
      "arch": config.model.name,
      "stage": config.stage,
      "dataset": config.dataset,
      "batch_size": count,
      "dtype": str(models.compute_dtype(config)),
      "images_per_second": count / taken[True],
      "step_seconds": taken[True],
      "step_seconds_without_augmentation": taken[False],
      "rounds": {"with": run.rounds, "without": self.runs[False].rounds},
      "input_share": 100 * (taken[True] / taken[False] - 1),
      "compile_seconds": run.compile_seconds,
      "model_flops": self.flops / count,
      "peak_share": peak and 100 * rate / (peak * jax.device_count()),
      **program_figures(run.compiled),
      "devices": jax.device_count(),
      "device": kind,
      "jax": jax.__version__,
    }


def program_figures(compiled):
  """What a compiled program takes, and what it would be slow at."""
  memory = compiled.memory_analysis()
  cost = compiled.cost_analysis() or {}
  return {
    "memory_bytes": memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "program": {
      # XLA counts a loop's content once, however often it runs.
      "xla_flops": cost.get("flops"),
      "xla_bytes_accessed": cost.get("bytes accessed"),
      **inspection.figures(hlo.Program(compiled.as_text())),
    },
  }


def random_batch(config, placed):
  """Random images and labels on the devices."""
  rng = np.random.default_rng(0)
  shapes = steps.batch_shapes(config)
  highest = {"image": 256, "label": steps.CLASSES}
  batch = {
    key: rng.integers(0, highest[key], x.shape, x.dtype)
    for key, x in shapes.items()
  }
  return jax.device_put(batch, placed)


class Timed:
  """A compiled step, its state, and how long its rounds took.

  Attributes:
    lowered: the step before it was compiled.
    compiled: (state, batch) -> (state, metrics); the state is donated.
    compile_seconds: how long that took.
    rounds: seconds of a step, round by round.
  """

  def __init__(self, lowered, compiled, state, batch, compile_seconds):
    self.lowered = lowered
    self.compiled = compiled
    self.state = state
    self.batch = batch
    self.compile_seconds = compile_seconds
    self.rounds = []

  def go(self, steps):
    """Makes steps, waiting for the last alone; gives the seconds."""
    began = time.perf_counter()
    for _ in range(steps):
      self.state, metrics = self.compiled(self.state, self.batch)
    jax.block_until_ready((self.state, metrics))
    return time.perf_counter() - began
