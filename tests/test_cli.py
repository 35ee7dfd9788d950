"""Shared command-line code."""

import runpy
import sys

import jax.numpy as jnp
import pytest

from vit_ssl_jax import cli


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


COMMANDS = ["benchmark", "evaluate", "export", "predict", "quickstart"]


@pytest.mark.parametrize("name", [*COMMANDS, "report", "reproduce"])
def test_every_command_runs_as_a_module(name, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", [name, "--help"])
  monkeypatch.delitem(sys.modules, f"vit_ssl_jax.{name}", raising=False)
  with pytest.raises(SystemExit) as status:
    runpy.run_module(f"vit_ssl_jax.{name}", run_name="__main__")
  assert not status.value.code
  assert f"python -m vit_ssl_jax.{name}" in capsys.readouterr().out
