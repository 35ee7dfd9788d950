"""How fast a stage's step is, what its time goes to, and what many chips give.

`python -m vit_ssl_jax.benchmark` is the command; `--help` says what it prints.
"""

from vit_ssl_jax.benchmark.counting import count_flops
from vit_ssl_jax.benchmark.measuring import measure
from vit_ssl_jax.benchmark.steps import stage

__all__ = ["count_flops", "measure", "stage"]
