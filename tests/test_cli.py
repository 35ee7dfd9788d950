"""What all commands share."""

import platform
import subprocess
import sys

import jax.numpy as jnp
import pytest

from vit_ssl_jax import cli

# A program with a temporary buffer of 64 MiB, and the pages that a run of it
# has the system clear.
FAULTS = """
import resource
from vit_ssl_jax import cli

cli.configure()
import jax
import jax.numpy as jnp

x = jnp.ones(4096)
step = jax.jit(lambda x: jnp.outer(x, x) @ x).lower(x).compile()

def faults(steps):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(steps):
    step(x).block_until_ready()
  return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps

faults(5)
print(step.memory_analysis().temp_size_in_bytes, faults(10))
"""


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="it is glibc that is told to"
)
def test_steps_on_a_cpu_reuse_their_memory():
  done = subprocess.run(
    [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
  )
  size, faults = map(float, done.stdout.split())
  assert size == 64 * 2**20
  assert faults < size / 4096 / 4


def test_too_little_memory_is_said_in_one_sentence(capsys):
  with pytest.raises(SystemExit, match="2"), cli.reporting_errors():
    jnp.zeros(2**46).block_until_ready()
  found = capsys.readouterr().err
  assert found.startswith("error: the device has too little memory (")
  assert "accumulate_steps" in found
  assert found.count("\n") == 1


def test_table_columns_line_up():
  text = cli.table(("labels", "top-1"), [("all", 98.125), ("10%", None)])
  assert text.splitlines() == [
    "labels  top-1",
    "------  -----",
    "all     98.12",
    "10%         -",
  ]
