"""Stage 2: supervised fine-tuning; without init_from, from scratch.

  python -m main --config=configs/finetune.py:vit,cifar10 --workdir=B \
    --config.init_from=A

The values are in vit_ssl_jax/recipes/finetune.py.
"""

from vit_ssl_jax.recipes.finetune import get_config

__all__ = ["get_config"]
