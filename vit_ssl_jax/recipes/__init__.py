"""Recipes: the paper's for its data sets, and a rule's for custom ones."""

import importlib

STAGES = ("pretrain", "finetune")


def get(stage, arg):
  """The ConfigDict of a stage for "ARCH,DATASET"."""
  module = importlib.import_module(f"vit_ssl_jax.recipes.{stage}")
  return module.get_config(arg)
