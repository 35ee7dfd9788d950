"""Training: `run` is the one entry of the commands and of the estimators."""

import functools

from vit_ssl_jax import models
from vit_ssl_jax.recipes import keys, schema
from vit_ssl_jax.run import checkpoints, workdir as workdirs
from vit_ssl_jax.train import loop


def run(config, workdir, dataset=None):
  """Trains in `workdir`, or resumes there.

  Args:
    config: the run's ConfigDict; keys without a value are resolved.
    workdir: the run's folder.
    dataset: a `load.Dataset`; None is the one that the config names.

  Returns:
    The content of result.json. Pretraining gives `knn`, the top-1 of nearest
    neighbours on the last teacher's features; fine-tuning gives `top1` after
    the last step and `best_top1_on_test` over all evaluations. All are in
    percent of all test images. With validation images there are those of
    `metrics.best_on_val` too.

  Raises:
    UserError: a value, the data, the weights or the workdir do not fit.
    KeyboardInterrupt: the run was stopped; it has saved a checkpoint.
  """
  config = config.copy_and_resolve_references()
  if schema.is_unset(config):
    from vit_ssl_jax.train import resolve

    config = resolve.resolve(config, workdir, dataset)
  keys.drop_unread(config)
  workdirs.claim(config, workdir)
  model = models.from_config(config, num_classes=0)
  make_stage = stage_of(config).make_stage
  # Weights are read before the data, so that an error comes early; a run that
  # resumes from its own checkpoint no longer needs them.
  if config.get("init_from") and not checkpoints.steps(workdir):
    from vit_ssl_jax.train import initial

    weights = initial.read(config, model)
    make_stage = functools.partial(make_stage, initial=weights)
  return loop.run(config, workdir, make_stage, dataset)


def stage_of(config):
  """The module of a config's stage and objective."""
  if config.stage == "finetune":
    from vit_ssl_jax.train import finetune as stage
  elif config.objective == "mae":
    from vit_ssl_jax.train import mae as stage
  else:
    from vit_ssl_jax.train import pretrain as stage
  return stage
