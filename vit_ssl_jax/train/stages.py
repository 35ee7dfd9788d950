"""The stage of a config: the one place that chooses by stage and objective."""


def get(config):
  """The module of a config's stage, whose `make_stage` gives a `loop.Stage`."""
  if config.stage == "finetune":
    from vit_ssl_jax.train import finetune as stage
  elif config.objective == "mae":
    from vit_ssl_jax.train import mae as stage
  else:
    from vit_ssl_jax.train import pretrain as stage
  return stage
