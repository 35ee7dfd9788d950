"""Stage 1: self-supervised pretraining on the small set itself.

  python -m main --config=configs/pretrain.py:vit,cifar10 --workdir=A

Measured: not yet for the paper's sets; for `digits`, the quickstart's set, see
docs/results.md. The values are in vit_ssl_jax/recipes/pretrain.py.
"""

from vit_ssl_jax.recipes.pretrain import get_config

__all__ = ["get_config"]
