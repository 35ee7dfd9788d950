"""Stage 1: self-supervised view prediction.

  python -m main --config=configs/pretrain.py:vit,cifar10 --workdir=A

The values are in vit_ssl_jax/recipes/pretrain.py.
"""

from vit_ssl_jax.recipes.pretrain import get_config

__all__ = ["get_config"]
