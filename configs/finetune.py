"""Stage 2: supervised fine-tuning; without init_from, from scratch.

  python -m main --config=configs/finetune.py:vit,cifar10 --workdir=B \
    --config.init_from=A

A is a workdir or a file of weights (docs/weights.md). The paper's "100 epochs"
take three passes over the data each; here an epoch is one pass.

Measured: not yet for the paper's sets; for `digits`, the quickstart's set, see
docs/results.md. The values are in vit_ssl_jax/recipes/finetune.py.
"""

from vit_ssl_jax.recipes.finetune import get_config

__all__ = ["get_config"]
