"""The one host loop: restore, step, log, evaluate, save, stop."""

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax import cli
from vit_ssl_jax.data import load
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.parallel import hosts, mesh as meshes
from vit_ssl_jax.recipes import keys
from vit_ssl_jax.run import checkpoints, metrics, workdir as workdirs
from vit_ssl_jax.train import alarms

ESTIMATED_AFTER = 20  # steps


@dataclasses.dataclass(frozen=True)
class Stage:
  """All that the loop is given of a stage.

  Attributes:
    init: () -> the state of step 0, a dataclass of arrays.
    step: a pure function (state, batch) -> (state, metrics).
    evaluate: (state, due) -> dict of figures in percent. It is due every
      config.evaluate_every_epochs and at the end of the schedule, and its
      figures go into the step's line; where a run stops early it is not, and
      they go into result.json alone.
    summarize: (all lines of metrics) -> dict of final figures.
    parameters: how many the network has that the stage is for.
    trained: (state) -> the pytree of parameters that gradients are of.
    warn: (the recent lines, the evaluated ones, the baselines, the step's share
      of the run) -> a sentence for the user, or None. See `metrics.Recorder`.
    baselines: () -> figures in percent of what there is before any training.
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
  """The PRNG key of the first parameters, of a stream of their own."""
  return jax.random.split(jax.random.key(config.seed))[0]


def step_key(config):
  """The PRNG key that step t folds its number into."""
  return jax.random.split(jax.random.key(config.seed))[1]


def run(config, workdir, make_stage, dataset=None):
  """Trains from the newest checkpoint, or from the start, to the end.

  Args:
    config: the run's ConfigDict, which `workdir.claim` has accepted.
    workdir: the run's folder.
    make_stage: (config, dataset, steps_per_epoch, mesh) -> `Stage`.
    dataset: a `load.Dataset`; None is the one that the config names.

  Returns:
    The content of result.json.

  Raises:
    UserError: something does not fit, or a value of a step was not finite.
    KeyboardInterrupt: the run was told to stop; it has saved a checkpoint.
  """
  mesh = meshes.make_mesh(
    config.mesh.fsdp, config.batch_size, config.accumulate_steps
  )
  config, dataset, source = load.open_data(config, mesh, dataset)
  stage = make_stage(config, dataset, source.steps_per_epoch, mesh)
  plan = Plan(config, source.steps_per_epoch)
  plan.check()
  with jax.set_mesh(mesh), workdirs.opened(config, workdir, dataset):
    state, start, lines, shardings = first_state(workdir, mesh, stage.init)
    done = workdirs.finished(workdir, start) if start >= plan.stop else None
    if result := hosts.broadcast(done):
      cli.log(f"finished already, at step {start} of {plan.total}")
      return result
    cli.log(
      f"{config.model.name}, {stage.parameters:,} parameters, on {mesh.size} x"
      f" {jax.devices()[0].device_kind}"
      + (f": resuming from step {start} of {plan.total}" if start else "")
    )
    baselines = workdirs.baselines(workdir, stage.baselines)
    for name, value in baselines.items():
      cli.log(f"before training: {name} {value:.2f} %")
    dispatch, most = make_dispatch(config, source, stage.step, shardings)
    try:
      with training(
        workdir, plan, stage, state, start, lines, baselines
      ) as loop:
        state, reached = loop.train(
          state, start, source.items(start), dispatch, most
        )
        if reached < plan.stop:
          raise KeyboardInterrupt(
            f"stopped at step {reached} of {plan.total} with a checkpoint: the"
            " same command resumes from there"
          )
        figures = loop.final_figures(state, reached)
    except metrics.NotFiniteError as e:
      raise not_finite(e, workdir) from e
    return workdirs.write_result(
      workdir, state, stage.summarize, baselines | figures
    )


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is due after which step.

  Attributes:
    config: the run's config.
    per_epoch: steps an epoch.
  """

  config: Any
  per_epoch: int

  @property
  def total(self):
    """Steps of the schedule."""
    return self.config.epochs * self.per_epoch

  @property
  def stop(self):
    """The last step of this run."""
    return min(self.total, self.config.max_steps or self.total)

  def check(self):
    """Raises a UserError where steps could not be counted in 32 bits."""
    if self.total > keys.MOST:
      raise UserError(
        f"epochs={self.config.epochs} of {self.per_epoch} steps each are more"
        f" than {keys.MOST:,} steps"
      )

  def logs(self, step):
    return step % self.config.log_every_steps == 0 or step == self.stop

  def evaluates(self, step):
    every = self.config.evaluate_every_epochs * self.per_epoch
    return step % every == 0 or step == self.total

  def saves(self, step):
    keep = self.config.keep_every_epochs * self.per_epoch
    every = self.config.checkpoint_every_steps
    due = step % every == 0 or (keep and step % keep == 0)
    return due or step == self.stop

  def dispatches(self, start, most):
    """Ranges of at most `most` steps, with something due after the last alone.

    Args:
      start: how many steps are done.
      most: steps per dispatch.
    """
    first = start + 1
    while first <= self.stop:
      last = first
      while last - first + 1 < most and not (
        self.logs(last) or self.evaluates(last) or self.saves(last)
      ):
        last += 1
      yield range(first, last + 1)
      first = last + 1


@dataclasses.dataclass(frozen=True)
class Loop:
  """The loop over dispatches, and what it keeps open."""

  plan: Plan
  stage: Stage
  saver: Any
  recorder: metrics.Recorder
  bar: Any
  clock: "Clock"
  stopping: Any
  baselines: dict

  def train(self, state, start, items, dispatch, most):
    """Makes the steps after `start`; the last state and its step.

    It ends early, with a checkpoint, where any process is told to stop.
    """
    reached = start
    for number, steps in enumerate(self.plan.dispatches(start, most), 1):
      state, values = dispatch(state, items, len(steps))
      self.recorder.add(steps, values)
      self.bar.update(len(steps) * self.plan.config.batch_size)
      if number == 1:  # it was compiled now
        jax.block_until_ready(state)
        self.clock.restart()
        self.bar.unpause()
      else:
        self.clock.steps += len(steps)
        self.estimate(steps, state)
      stops = self.stopping.is_set() or hosts.reached_preemption(number)
      reached = steps[-1]
      self.after(reached, state, stops)
      if stops:
        break
    jax.block_until_ready(state)
    self.clock.pause()
    return state, reached

  def estimate(self, steps, state):
    """Says once, early on, how long the run will take."""
    made = self.clock.steps
    if not made - len(steps) < ESTIMATED_AFTER <= made:
      return
    jax.block_until_ready(state)
    seconds = self.clock.seconds + time.perf_counter() - self.clock.since
    left = (self.plan.stop - steps[-1]) * seconds / self.clock.steps
    cli.log(f"about {cli.duration(left)} to go, by the first steps")

  def after(self, step, state, stops):
    """Does what is due after a step, and saves where it was the last one."""
    best = None  # the validation figure, where it is the best so far
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
    """Evaluates; the validation figure, where it is the best so far."""
    jax.block_until_ready(state)
    self.clock.pause()
    figures = hosts.broadcast(self.stage.evaluate(state, True))
    best = self.recorder.complete(figures)
    for name, value in figures.items():
      cli.log(f"epoch {step / self.plan.per_epoch:.4g}: {name} {value:.2f} %")
    self.clock.restart()
    return best

  def final_figures(self, state, reached):
    """Figures for result.json, beside those of the lines of metrics."""
    due = self.plan.evaluates(reached)
    last = [x for x in self.recorder.recent if x["step"] == reached]
    figures = {}
    if not (due and self.stage.summarize(last)):  # nor is it in a lost line
      figures = hosts.broadcast(self.stage.evaluate(state, due))
    return figures | {
      "step": reached,
      "epoch": round(reached / self.plan.per_epoch, 4),
      "parameters": self.stage.parameters,
      "images_per_second": self.clock.rate(self.plan.config.batch_size),
      "seconds": self.recorder.elapsed(),
    }

  def show(self):
    """Brings the bar's loss up to date; says once what there is to warn of."""
    lines = self.recorder.recent
    lines = [line for line in lines if "loss" in line]  # not of skipped steps
    if not lines:
      return
    self.bar.set_postfix({"loss": f"{lines[-1]['loss']:.4g}"}, refresh=False)
    step = lines[-1]["step"]
    hopeless = self.stage.warn(
      *(lines, self.recorder.evaluated, self.baselines, step / self.plan.total)
    )
    if hopeless and self.plan.config.get("on_collapse") == "stop":
      raise UserError(f"stopped at step {step}: {hopeless}")
    warning = hopeless or alarms.loss_spike_warning(lines)
    if warning and warning != self.recorder.warned:
      cli.log(f"warning: step {step}: {warning}")
    self.recorder.warned = warning


@contextlib.contextmanager
def training(workdir, plan, stage, state, start, lines, baselines):
  """Yields a `Loop` that begins after step `start`, with `state`."""
  config = plan.config
  # TensorBoard's writer needs TensorFlow, which a run on an npz does without.
  events = config.tensorboard and not config.dataset.startswith("npz:")
  bar = cli.progress_bar(
    plan.stop * config.batch_size,
    "img",
    initial=start * config.batch_size,
    disable=not hosts.is_primary(),
  )
  tensors = jax.tree_util.tree_leaves_with_path(stage.trained(state))
  tensors = [checkpoints.path_name(path) for path, _ in tensors]
  keep_every_steps = config.keep_every_epochs * plan.per_epoch
  with (
    checkpoints.manager(workdir, config.keep_last, keep_every_steps) as saver,
    metrics.Recorder(
      *(workdir, start, plan.per_epoch, events),
      digest=lines,
      tensors=tensors,
      skips=config.on_nonfinite == "skip",
    ) as recorder,
    cli.stop_signals() as stopping,
    bar,
  ):
    yield Loop(
      *(plan, stage, saver, recorder, bar, Clock(), stopping, baselines)
    )


def first_state(workdir, mesh, init):
  """The newest whole checkpoint's state and step, or a fresh one and 0.

  Returns:
    The state, its step, the digest of its lines, and its shardings.
  """
  shape = jax.eval_shape(init)
  shardings = meshes.state_sharding(mesh, shape)
  placed = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shape,
    shardings,
  )
  state, step, lines = checkpoints.restore(workdir, placed)
  if not step:
    state = meshes.device_put_global(init(), shardings)
  return state, step, lines, shardings


def not_finite(error, workdir):
  """The UserError for a step whose value was not finite."""
  step, name = error.args
  try:
    state, _ = checkpoints.read(workdir)
    saved = pathlib.Path(workdir, checkpoints.FOLDER, str(state["step"]))
    last = f"the last checkpoint, which is whole, is {saved}"
  except UserError:
    last = "there is no whole checkpoint before it"
  return UserError(
    f"stopped: {name} is not finite at step {step}; {last}; a lower"
    " optim.learning_rate, dtype=float32 or on_nonfinite=skip may help"
  )


def steps_per_dispatch(config, source):
  """How many steps one call of the compiled program makes at most.

  Several where the set lies on an accelerator: the items are indices then, and
  the host is seldom waited for.
  """
  if source.placement != "device":
    return 1
  on_cpu = jax.default_backend() == "cpu"
  return config.steps_per_dispatch or (1 if on_cpu else 10)


def make_dispatch(config, source, step, shardings):
  """Makes what fetches batches and makes a step of each, as one program.

  Args:
    config: the run's config.
    source: the training batches, a `batches.Source`.
    step: of a `Stage`.
    shardings: of the state.

  Returns:
    (state, iterator of the source's items, count) -> (state, metrics), and the
    most steps that one call makes. The state is donated. Metrics are scalars
    where that is 1, else (most,), of which the first `count` hold.
  """
  most = steps_per_dispatch(config, source)

  def one(state, arrays, item):
    return step(state, source.fetch(arrays, item))

  def several(state, arrays, items, count):
    def body(i, carry):
      state, kept = carry
      state, values = one(state, arrays, items[i])
      return state, jax.tree.map(lambda k, x: k.at[i].set(x), kept, values)

    _, shape = jax.eval_shape(one, state, arrays, items[0])
    kept = jax.tree.map(lambda x: jnp.zeros(most, x.dtype), shape)
    return jax.lax.fori_loop(0, count, body, (state, kept))

  program = jax.jit(
    one if most == 1 else several,
    donate_argnums=0,
    out_shardings=(shardings, None),
    compiler_options=meshes.compiler_options(jax.default_backend()),
  )

  def dispatch(state, items, count):
    if most == 1:
      return program(state, source.arrays, next(items))
    # The count is an argument, so that one program does for all.
    taken = list(itertools.islice(items, count))
    taken += taken[:1] * (most - count)
    return program(state, source.arrays, np.stack(taken), count)

  return dispatch, most


class Clock:
  """Adds up the seconds between `restart` and `pause`, and steps.

  Attributes:
    steps: how many were made in these seconds.
  """

  def __init__(self):
    self.seconds = 0.0
    self.since = None
    self.steps = 0

  def restart(self):
    self.since = time.perf_counter()

  def pause(self):
    if self.since is not None:
      self.seconds += time.perf_counter() - self.since
    self.since = None

  def rate(self, batch_size):
    """Throughput in images a second, or None where there were no steps."""
    if not (self.steps and self.seconds):
      return None
    return self.steps * batch_size / self.seconds
