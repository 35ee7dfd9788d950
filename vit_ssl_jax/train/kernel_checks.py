"""Checks of a run's kernels: once, the same on all hosts and after a resume."""

import pathlib

import jax
import numpy as np

from vit_ssl_jax import cli, files, kernels
from vit_ssl_jax.kernels import verify
from vit_ssl_jax.parallel import hosts


def select(config, step, state, workdir=None):
  """Checks the kernels of a training step and sets which ones are used.

  The answers stand in the workdir's kernels.json, for a resume on the same kind
  of device. A kernel is used only if all processes have accepted it.

  Args:
    config: the run's.
    step: a pure function (state, batch) -> (state, metrics).
    state: arrays or their shapes.
    workdir: the run's folder; None where a step is only timed.
  """
  kernels.use(config.kernels)
  if config.kernels == "xla":
    return
  side = config.model.image_size
  images = (config.batch_size, side, side, 3)
  batch = {
    "image": jax.ShapeDtypeStruct(images, np.uint8),
    "label": jax.ShapeDtypeStruct(images[:1], np.int32),
  }
  calls = verify.calls_of(step, state, batch)
  if not calls:
    return
  path = pathlib.Path(workdir, "kernels.json") if workdir else None
  saved = files.read_json(path) if path and path.is_file() else {}
  saved = hosts.broadcast(saved.get(verify.environment(), {}))
  new = {key: call for key, call in calls.items() if key not in saved}
  answers = verify.verify(new, files.cache_directory("kernels"))
  answers = saved | agreed(hosts.all_gather(answers))
  if path and new and hosts.is_primary():
    content = {verify.environment(): answers}
    files.write_json(path, content)
  for key in calls:
    used = "used" if answers[key]["accepted"] else "not used"
    cli.log(f"kernel {key}: {used}, {answers[key]['reason']}")
  kernels.use("auto", [key for key in calls if answers[key]["accepted"]])


def agreed(answers):
  """Joins all processes' answers; one that rejects a kernel decides."""
  return {
    key: min((x[key] for x in answers), key=lambda x: x["accepted"])
    for key in answers[0]
  }
