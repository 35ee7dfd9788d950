"""The one host loop: restore, step, log, evaluate, save, stop."""

import contextlib
import dataclasses
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax import cli, models
from vit_ssl_jax.cli import UserError
from vit_ssl_jax.parallel import hosts, mesh as sharding
from vit_ssl_jax.run import checkpoints, metrics, workdir as workdirs


def init_key(config):
  """The PRNG key of the first parameters, of a stream of their own."""
  return jax.random.split(jax.random.key(config.seed))[0]


def step_key(config):
  """The PRNG key that step t folds its number into."""
  return jax.random.split(jax.random.key(config.seed))[1]


def run(
  config,
  workdir,
  *,
  mesh,
  model,
  init_state,
  train_step,
  source,
  evaluate,
  summarize,
  warn=lambda lines: None,
):
  """Trains from the newest checkpoint, or from the start, to the end.

  Args:
    config: the run's ConfigDict.
    workdir: the run's folder, as `workdirs.make` makes it.
    mesh: a mesh of `sharding.make_mesh`.
    model: the network, to say how large it is.
    init_state: () -> the state of step 0, a dataclass of arrays.
    train_step: a pure function (state, batch) -> (state, metrics).
    source: the training batches, a `batches.Source`.
    evaluate: (state, due) -> dict of numbers; called every
      config.evaluate_every_epochs and at the end of the schedule, when it is
      due and the numbers go into the step's line, and also where a run stops
      early, when it is not and they go into result.json alone.
    summarize: (all lines of metrics) -> dict of final figures.
    warn: (the recent lines) -> a sentence for the user, or None.

  Returns:
    The content of result.json.

  Raises:
    UserError: a value of a step was not finite.
    KeyboardInterrupt: the run was told to stop; it has saved a checkpoint.
  """
  parameters = models.count(model)
  cli.say(
    f"{config.model.name}: {parameters:,} parameters in {model.dtype.name} on"
    f" {mesh.size} x {jax.devices()[0].device_kind}"
  )
  per_epoch = source.steps_per_epoch
  total = config.epochs * per_epoch
  stop = min(total, config.max_steps or total)
  # TensorBoard's writer needs TensorFlow, which an npz run does without.
  events = config.tensorboard and not config.dataset.startswith("npz:")
  with contextlib.ExitStack() as stack:
    saver = stack.enter_context(
      checkpoints.manager(
        workdir, config.keep_last, config.keep_every_epochs * per_epoch
      )
    )
    start = checkpoints.agreed_step(saver)
    if start >= stop and (
      result := hosts.same(workdirs.finished(workdir, start))
    ):
      cli.say(f"finished already, at step {start} of {total}")
      return result
    state, shardings = first_state(saver, mesh, init_state)
    if start:
      cli.say(f"going on from step {start} of {total}")
    recorder = metrics.Recorder(workdir, start, per_epoch, events)
    stack.callback(close, recorder)
    stopping = stack.enter_context(cli.stop_signals())
    bar = stack.enter_context(
      cli.progress_bar(
        stop * config.batch_size,
        "image",
        initial=start * config.batch_size,
        disable=not hosts.first(),
      )
    )
    at_once = steps_per_dispatch(config, source)
    steps = Steps(config, per_epoch, start, stop, total, at_once)
    clock = Clock()
    try:
      state = train(
        steps, state, compiled(train_step, source, shardings, at_once), source,
        evaluate, warn, recorder, saver, bar, clock, stopping,
      )  # fmt: skip
    except metrics.NotFiniteError as e:
      raise not_finite(e, workdir, saver) from e
    figures = {}
    reached = recorder.recent[-1]["step"]
    if not (steps.evaluates(max(start, stop)) or reached < stop):
      figures = hosts.same(evaluate(state, False))
    seconds = recorder.elapsed()
  if reached < stop:
    raise KeyboardInterrupt(
      f"stopped at step {reached} of {total} with a checkpoint: the same"
      " command goes on from there"
    )
  return workdirs.write_result(
    workdir,
    state,
    summarize,
    {
      **figures,
      "parameters": parameters,
      "images_per_second": clock.rate(config.batch_size),
      "seconds": seconds,
    },
  )


@dataclasses.dataclass(frozen=True)
class Steps:
  """What is done when."""

  config: Any
  per_epoch: int
  start: int
  stop: int
  total: int
  at_once: int

  def logs(self, step):
    return step % self.config.log_every_steps == 0 or step == self.stop

  def evaluates(self, step):
    every = self.config.evaluate_every_epochs * self.per_epoch
    return step % every == 0 or step == self.total

  def saves(self, step):
    kept = self.config.keep_every_epochs * self.per_epoch
    return (
      step % self.config.checkpoint_every_steps == 0
      or (kept and step % kept == 0)
      or step == self.stop
    )

  def together(self):
    """The ranges of at most `at_once` steps of which only the last one has
    something to be done after it."""
    first = self.start + 1
    while first <= self.stop:
      step = first
      while step - first + 1 < self.at_once and not (
        self.logs(step) or self.evaluates(step) or self.saves(step)
      ):
        step += 1
      yield range(first, step + 1)
      first = step + 1


def train(
  steps, state, step_fn, source, evaluate, warn, recorder, saver, bar, clock,
  stopping,
):  # fmt: skip
  """Makes the steps from steps.start to steps.stop; the state they end with.

  It ends earlier, with a checkpoint, where `stopping` is set on any process.
  """
  items = source.items(steps.start)
  for made in steps.together():
    step = made[-1]
    state, values = step_fn(state, source.arrays, items, len(made))
    recorder.add(made, values)
    better = None  # the validation figure, where it is the best so far
    bar.update(len(made) * steps.config.batch_size)
    if made[0] == steps.start + 1:  # it was compiled now
      jax.block_until_ready(state)
      clock.restart()
      bar.unpause()
    else:
      clock.steps += len(made)
    if steps.logs(step):
      recorder.flush(keep_last=True)
      show(bar, recorder, warn)
    if steps.evaluates(step):
      jax.block_until_ready(state)
      clock.pause()
      figures = hosts.same(evaluate(state, True))
      recorder.complete(figures)
      better = recorder.improved(figures)
      for name, value in figures.items():
        cli.say(f"epoch {step / steps.per_epoch:.4g}: {name} {value:.2f} %")
      clock.restart()
    # Several processes have to stop at the same step, and ask each other now
    # and then; one alone stops at once.
    stops = stopping.is_set()
    if jax.process_count() > 1:
      stops = steps.logs(step) and hosts.any_of(stops)
    if steps.saves(step) or better is not None or stops:
      recorder.flush()
      checkpoints.save(saver, step, state, better)
    if stops:
      break
  jax.block_until_ready(state)
  clock.pause()
  return state


def close(recorder):
  """Closes a recorder; that events could not be written costs no result."""
  if problem := recorder.close():
    cli.say(f"warning: TensorBoard events were not written: {problem}")


def first_state(saver, mesh, init_state):
  """The newest checkpoint's state, or a fresh one, and its shardings."""
  shape = jax.eval_shape(init_state)
  shardings = sharding.state_sharding(mesh, shape)
  if not checkpoints.latest_step(saver):
    return sharding.place(init_state(), shardings), shardings
  placed = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shape,
    shardings,
  )
  return checkpoints.restore(saver, placed), shardings


def steps_per_dispatch(config, source):
  """How many steps one call of the compiled program makes at most.

  Several where the set lies on an accelerator: the items are indices then, and
  the host is seldom waited for.
  """
  if source.placement != "device":
    return 1
  on_cpu = jax.default_backend() == "cpu"
  return config.steps_per_dispatch or (1 if on_cpu else 10)


def compiled(train_step, source, shardings, at_once):
  """Makes what fetches batches and makes a step of each, as one program.

  Args:
    train_step: as in `run`.
    source: the training batches.
    shardings: of the state.
    at_once: the most steps that one call makes.

  Returns:
    (state, source.arrays, iterator of items, count) -> (state, metrics), with
    metrics of shape (at_once,), of which the first `count` hold, or scalars
    where at_once is 1; the state is donated.
  """

  def one(state, arrays, item):
    return train_step(state, source.fetch(arrays, item))

  def several(state, arrays, items, count):
    def body(i, carry):
      state, kept = carry
      state, values = one(state, arrays, items[i])
      return state, jax.tree.map(lambda k, x: k.at[i].set(x), kept, values)

    _, shape = jax.eval_shape(one, state, arrays, items[0])
    kept = jax.tree.map(lambda x: jnp.zeros(at_once, x.dtype), shape)
    return jax.lax.fori_loop(0, count, body, (state, kept))

  def jit(function):
    return jax.jit(function, donate_argnums=0, out_shardings=(shardings, None))

  if at_once == 1:
    step = jit(one)

    return lambda state, arrays, items, _: step(state, arrays, next(items))

  steps = jit(several)

  def call_several(state, arrays, items, count):
    # The count is an argument, so that one program does for all.
    taken = list(itertools.islice(items, count))
    taken += taken[:1] * (at_once - count)
    return steps(state, arrays, np.stack(taken), count)

  return call_several


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
    """Images a second, or None where there were none."""
    if not (self.steps and self.seconds):
      return None
    return self.steps * batch_size / self.seconds


def show(bar, recorder, warn):
  """Brings the bar's loss up to date; says once what there is to warn of."""
  if not recorder.recent:
    return
  last = recorder.recent[-1]
  bar.set_postfix({"loss": f"{last['loss']:.4g}"}, refresh=False)
  warning = warn(recorder.recent)
  if warning and warning != recorder.warned:
    cli.say(f"warning: step {last['step']}: {warning}")
  recorder.warned = warning


def not_finite(error, workdir, saver):
  """The UserError for a step whose value was not finite."""
  step, name = error.args
  saved = checkpoints.latest_step(saver)
  last = (
    f"the last good checkpoint is {workdir}/{checkpoints.FOLDER}/{saved}"
    if saved
    else "there is no checkpoint before it"
  )
  return UserError(
    f"stopped: {name} is not finite at step {step}; {last}; a lower"
    " optim.learning_rate or dtype=float32 may help"
  )
