"""The host loop: restore, step, log, evaluate, save, stop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from vit_ssl_jax import cli
from vit_ssl_jax.data import load
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts, mesh as meshes
from vit_ssl_jax.recipes import key_types
from vit_ssl_jax.run import checkpoints, metrics, workdir as workdirs
from vit_ssl_jax.train import alarms, dispatch


@dataclasses.dataclass(frozen=True)
class Stage:
  """A training stage as the loop sees it.

  Attributes:
    init: () -> the initial state, a dataclass of arrays.
    step: a pure function (state, batch) -> (state, metrics).
    evaluate: (state, due) -> figures in percent; not `due` where a run stops
      between evaluations, whose figures go into result.json alone.
    summarize: (all lines of metrics) -> final figures.
    parameters: number of the network's parameters.
    trained: (state) -> the pytree of parameters that have gradients.
    warn: (recent lines, evaluated lines, baselines, share of the run) -> a
      warning, or None; see `metrics.Recorder`.
    baselines: () -> figures in percent before training.
  """

  init: Callable[[], Any]
  step: Callable[[Any, dict], tuple[Any, dict]]
  evaluate: Callable[[Any, bool], dict]
  summarize: Callable[[list], dict]
  parameters: int
  trained: Callable[[Any], Any]
  warn: Callable[[list, list, dict, float], str | None] = lambda *_: None
  baselines: Callable[[], dict] = dict


def init_key(config):
  """The PRNG key of the initial parameters."""
  return jax.random.split(jax.random.key(config.seed))[0]


def step_key(config):
  """The PRNG key that step t is folded into."""
  return jax.random.split(jax.random.key(config.seed))[1]


def run(config, workdir, make_stage, dataset=None):
  """Trains from the newest checkpoint, or from the start, to the end.

  The arguments are those of `train.run`, with a complete config and make_stage:
  (config, dataset, steps_per_epoch, mesh) -> `Stage`.
  """
  mesh = meshes.make_mesh(
    config.mesh.fsdp, config.batch_size, config.accumulate_steps
  )
  config, dataset, source = load.open_data(config, mesh, dataset)
  if config.tensorboard and not hosts.broadcast(metrics.can_write_events()):
    cli.log("tensorboard=False: TensorFlow, clu or tensorboard is missing")
    config.tensorboard = False
  stage = make_stage(config, dataset, source.steps_per_epoch, mesh)
  plan = Plan(config, source.steps_per_epoch)
  if plan.total > key_types.MOST:  # the step is an int32
    raise UserError(
      f"epochs={config.epochs} of {source.steps_per_epoch} steps each are more"
      f" than {key_types.MOST:,} steps"
    )
  with jax.set_mesh(mesh), workdirs.opened(config, workdir, dataset):
    state, start, lines, shardings = first_state(workdir, mesh, stage.init)
    done = workdirs.finished(workdir, start) if start >= plan.stop else None
    if result := hosts.broadcast(done):
      cli.log(f"already finished at step {start} of {plan.total}")
      return result
    cli.log(
      f"{config.model.name}, {stage.parameters:,} parameters, on {mesh.size} x"
      f" {jax.devices()[0].device_kind}"
      + (f": resuming from step {start} of {plan.total}" if start else "")
    )
    dispatch.select_kernels(config, stage.step, state, workdir)
    loop = Loop(workdir, plan, stage)
    try:
      state, figures = loop.train(state, start, lines, source, shardings)
    except metrics.NotFiniteError as e:
      raise not_finite(e, workdir) from e
    return workdirs.write_result(workdir, state, stage.summarize, figures)


@dataclasses.dataclass(frozen=True)
class Plan:
  """The steps of a run, and after which of them to log, evaluate and save."""

  config: Any
  steps_per_epoch: int

  @property
  def total(self):
    """Steps of the schedule."""
    return self.config.epochs * self.steps_per_epoch

  @property
  def stop(self):
    """The last step of this run."""
    return min(self.total, self.config.max_steps or self.total)

  def logs(self, step):
    return step % self.config.log_every_steps == 0 or step == self.stop

  def evaluates(self, step):
    every = self.config.evaluate_every_epochs * self.steps_per_epoch
    return step % every == 0 or step == self.total

  def saves(self, step):
    keep = self.config.keep_every_epochs * self.steps_per_epoch
    every = self.config.checkpoint_every_steps
    due = step % every == 0 or (keep and step % keep == 0)
    return due or step == self.stop

  def dispatches(self, start, most):
    """Yields ranges of at most `most` steps; only their last has work due."""
    first = start + 1
    while first <= self.stop:
      last = first
      while last - first + 1 < most and not (
        self.logs(last) or self.evaluates(last) or self.saves(last)
      ):
        last += 1
      yield range(first, last + 1)
      first = last + 1


class Loop:
  """Runs a stage's steps and the work that is due after them."""

  def __init__(self, workdir, plan, stage):
    self.workdir, self.plan, self.stage = workdir, plan, stage
    self.config = plan.config
    self.baselines = workdirs.baselines(workdir, stage.baselines)
    for name, value in self.baselines.items():
      cli.log(f"before training: {name} {value:.2f} %")
    self.warning = None  # the last one logged
    self.timed_steps, self.began, self.evaluating = 0, None, 0.0

  def train(self, state, start, lines, source, shardings):
    """Trains to the end of the plan; returns the state and final figures."""
    step, most = dispatch.make_dispatch(
      self.config, source, self.stage.step, shardings
    )
    items, reached = source.items(start), start
    with self.opened(state, start, lines) as stopping:
      for number, steps in enumerate(self.plan.dispatches(start, most), 1):
        state, values = step(state, items, len(steps))
        self.recorder.add(steps, values)
        self.bar.update(len(steps) * self.config.batch_size)
        self.measure(steps, state)
        stops = stopping.is_set() or hosts.reached_preemption(number)
        reached = steps[-1]
        self.after(reached, state, stops)
        if stops:
          break
      jax.block_until_ready(state)
      rate = self.rate()
      if reached < self.plan.stop:
        raise KeyboardInterrupt(
          f"stopped at step {reached} of {self.plan.total} with a checkpoint:"
          " the same command resumes from there"
        )
      return state, self.final_figures(state, reached, rate)

  @contextlib.contextmanager
  def opened(self, state, start, lines):
    """Opens checkpoints, metrics and the progress bar; yields a stop Event."""
    config, plan = self.config, self.plan
    tensors = jax.tree_util.tree_leaves_with_path(self.stage.trained(state))
    with (
      checkpoints.manager(
        self.workdir,
        config.keep_last,
        config.keep_every_epochs * plan.steps_per_epoch,
      ) as self.saver,
      metrics.Recorder(
        *(self.workdir, start, plan.steps_per_epoch, config.tensorboard),
        digest=lines,
        tensors=[checkpoints.path_name(path) for path, _ in tensors],
        skips=config.on_nonfinite == "skip",
      ) as self.recorder,
      cli.stop_signals() as stopping,
      cli.progress_bar(
        plan.stop * config.batch_size,
        "img",
        initial=start * config.batch_size,
        disable=not hosts.is_primary(),
      ) as self.bar,
    ):
      yield stopping

  def measure(self, steps, state):
    """Times all dispatches but the first, which compiles."""
    if self.began is None:
      jax.block_until_ready(state)
      self.began = time.perf_counter()
      self.bar.unpause()
    else:
      self.timed_steps += len(steps)

  def rate(self):
    """Throughput in images per second, without evaluations; None if untimed."""
    if not self.timed_steps:
      return None
    seconds = time.perf_counter() - self.began - self.evaluating
    return self.timed_steps * self.config.batch_size / seconds

  def after(self, step, state, stops):
    """Logs, evaluates and saves, as far as due after a step."""
    best = None
    if self.plan.logs(step):
      self.recorder.flush(keep_last=True)
      self.show()
    if self.plan.evaluates(step):
      best = self.evaluate(step, state)
    if self.plan.saves(step) or best is not None or stops:
      self.recorder.flush()
      lines = self.recorder.digest.hexdigest()
      checkpoints.save(self.saver, step, state, best, lines)

  def evaluate(self, step, state):
    """Evaluates; returns the validation figure if it is the best so far."""
    jax.block_until_ready(state)
    began = time.perf_counter()
    figures = hosts.broadcast(self.stage.evaluate(state, True))
    best = self.recorder.complete(figures)
    epoch = step / self.plan.steps_per_epoch
    for name, value in figures.items():
      cli.log(f"epoch {epoch:.4g}: {name} {value:.2f} %")
    self.evaluating += time.perf_counter() - began
    return best

  def final_figures(self, state, reached, rate):
    """Figures for result.json beside those of the lines of metrics."""
    due = self.plan.evaluates(reached)
    last = [x for x in self.recorder.recent if x["step"] == reached]
    figures = {}
    if not (due and self.stage.summarize(last)):  # its line may be lost
      figures = hosts.broadcast(self.stage.evaluate(state, due))
    return {
      **self.baselines,
      **figures,
      "step": reached,
      "epoch": round(reached / self.plan.steps_per_epoch, 4),
      "parameters": self.stage.parameters,
      "images_per_second": rate,
      "seconds": self.recorder.elapsed(),
    }

  def show(self):
    """Updates the progress bar's loss; logs a new warning once."""
    lines = [x for x in self.recorder.recent if "loss" in x]  # none if skipped
    if not lines:
      return
    self.bar.set_postfix({"loss": f"{lines[-1]['loss']:.4g}"}, refresh=False)
    step, evaluated = lines[-1]["step"], self.recorder.evaluated
    share = step / self.plan.total
    collapse = self.stage.warn(lines, evaluated, self.baselines, share)
    if collapse and self.config.get("on_collapse") == "stop":
      raise UserError(f"stopped at step {step}: {collapse}")
    warning = collapse or alarms.loss_spike_warning(lines)
    if warning and warning != self.warning:
      cli.log(f"warning: step {step}: {warning}")
    self.warning = warning


def first_state(workdir, mesh, init):
  """Restores or initialises a state; returns it with its shardings.

  Between them are its step and the digest of its lines of metrics.
  """
  shape = jax.eval_shape(init)
  shardings = meshes.state_sharding(mesh, shape)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shape,
    shardings,
  )
  state, step, lines = checkpoints.restore(workdir, abstract)
  if not step:
    state = meshes.device_put_global(init(), shardings)
  return state, step, lines, shardings


def not_finite(error, workdir):
  """The UserError for a non-finite value."""
  step, name = error.args
  try:
    saved = int(checkpoints.read(workdir)[0]["step"])
    last = f"the last intact checkpoint is {workdir}/checkpoints/{saved}"
  except UserError:
    last = "there is no intact checkpoint before it"
  return UserError(
    f"stopped: {name} is not finite at step {step}; {last}; a lower"
    " optim.learning_rate, dtype=float32 or on_nonfinite=skip may help"
  )
