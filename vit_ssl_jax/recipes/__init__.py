"""Recipes: the paper's for its sets, and a rule's for images of one's own."""

from vit_ssl_jax.recipes import finetune, pretrain

STAGES = {"pretrain": pretrain, "finetune": finetune}


def get(stage, arg):
  """The ConfigDict of "pretrain" or "finetune" for "ARCH,DATASET"."""
  return STAGES[stage].get_config(arg)
