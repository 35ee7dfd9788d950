"""Times a step, also without its input's cost, and describes its program."""

import itertools
import statistics
import time

import jax
import numpy as np

from vit_ssl_jax import files, models
from vit_ssl_jax.benchmark import chips, hlo, inspection, profiling, steps
from vit_ssl_jax.benchmark.counting import count_flops
from vit_ssl_jax.data.batches import make_source
from vit_ssl_jax.parallel import mesh as sharding

# Dense bfloat16 operations a second, by the beginning of a device's kind, from
# its maker's data sheet.
PEAK = {
  "NVIDIA H100 80GB HBM3": 989e12,  # the one with SXM
  "NVIDIA H200": 989e12,
  "NVIDIA A100": 312e12,
  "TPU v4": 275e12,
  "TPU v5 lite": chips.V5E.peak,
  "TPU v5": chips.V5P.peak,
  "TPU v6 lite": chips.V6E.peak,
}
WARM_UP = 2  # steps
STREAMED = 8  # batches' images in the host's memory


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
      figures["profile"] = profiling.profile(one.runs["augmented"], trace)
  return found


class Measured:
  """A config's step, measured in three ways.

  Attributes:
    config: the config.
    runs: a `Timed` for each: "augmented", on a batch that lies on the device;
      "streamed", the same with batches that come from the host's memory;
      "bare", without augmentation.
    flops: of a step's matrix products.
  """

  def __init__(self, config):
    self.config = config
    self.runs = {}
    mesh = sharding.make_mesh(
      config.mesh.fsdp, config.batch_size, config.accumulate_steps
    )
    images = random_images(config, STREAMED)
    batch = {key: x[: config.batch_size] for key, x in images.items()}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    for name in ("augmented", "bare"):
      init, step = steps.stage(config, name == "augmented", mesh)
      shardings = sharding.state_sharding(mesh, jax.eval_shape(init))
      fresh = jax.jit(init, out_shardings=shardings)
      state = fresh()
      step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
      traced = step.trace(state, batch)
      # Of the last: without augmentation.
      self.flops = count_flops(traced.jaxpr.jaxpr)
      began = time.perf_counter()
      lowered = traced.lower()
      compiled = lowered.compile()
      seconds = time.perf_counter() - began
      batches = itertools.repeat(batch)
      self.runs[name] = Timed(lowered, compiled, state, batches, seconds)
      if name == "augmented":
        batches = streamed(images, config.batch_size, mesh)
        self.runs["streamed"] = Timed(
          lowered, compiled, fresh(), batches, seconds
        )

  def write_text(self, path):
    """Writes the compiled step's text."""
    files.write(path, self.runs["augmented"].compiled.as_text())

  def figures(self):
    """What the rounds and the program give."""
    config, run = self.config, self.runs["augmented"]
    taken = {k: statistics.median(r.rounds) for k, r in self.runs.items()}
    bare, seconds = taken["bare"], taken["augmented"]
    count = config.batch_size
    kind = jax.devices()[0].device_kind
    peak = next((v for k, v in PEAK.items() if kind.startswith(k)), None)
    rate = self.flops / seconds
    return {
      "arch": config.model.name,
      "stage": config.stage,
      "dataset": config.dataset,
      "batch_size": count,
      "dtype": str(models.compute_dtype(config)),
      "images_per_second": count / seconds,
      "step_seconds": seconds,
      "step_seconds_without_augmentation": bare,
      "step_seconds_streamed": taken["streamed"],
      "rounds": {name: x.rounds for name, x in self.runs.items()},
      "input_share": 100 * (seconds / bare - 1),
      "streaming_share": 100 * (taken["streamed"] / seconds - 1),
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


def random_images(config, batches):
  """Random images and labels of so many batches, in the host's memory."""
  rng = np.random.default_rng(0)
  highest = {"image": 256, "label": steps.CLASSES}
  return {
    key: rng.integers(
      0, highest[key], (batches * len(x), *x.shape[1:]), x.dtype
    )
    for key, x in steps.batch_shapes(config).items()
  }


def streamed(images, batch_size, mesh):
  """Batches as training streams them from the host's memory, without end."""
  source = make_source(
    images["image"],
    images["label"],
    batch_size,
    seed=0,
    placement="host",
    mesh=mesh,
  )
  return source.items(0)


class Timed:
  """A compiled step, its state, and how long its rounds took.

  Attributes:
    lowered: the step before it was compiled.
    compiled: (state, batch) -> (state, metrics); the state is donated.
    batches: an iterator without end.
    compile_seconds: how long that took.
    rounds: seconds of a step, round by round.
  """

  def __init__(self, lowered, compiled, state, batches, compile_seconds):
    self.lowered = lowered
    self.compiled = compiled
    self.state = state
    self.batches = batches
    self.compile_seconds = compile_seconds
    self.rounds = []

  def go(self, steps):
    """Makes steps, waiting for the last alone; gives the seconds."""
    began = time.perf_counter()
    for _ in range(steps):
      self.state, metrics = self.compiled(self.state, next(self.batches))
    jax.block_until_ready((self.state, metrics))
    return time.perf_counter() - began
