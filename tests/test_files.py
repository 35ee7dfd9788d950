"""Files that are whole or not there."""

import os

import pytest

from vit_ssl_jax import files


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
  path = tmp_path / "x"
  path.mkdir()
  (path / "old").touch()
  moves, replace = [], os.replace

  def broken(source, target):
    moves.append(target)
    if len(moves) == 2:  # after the old folder has been put aside
      raise OSError("no")
    replace(source, target)

  monkeypatch.setattr(os, "replace", broken)
  with (
    pytest.raises(OSError, match="no"),
    files.atomic_write(path) as temporary,
  ):
    temporary.mkdir()
  assert [x.name for x in tmp_path.rglob("*")] == ["x", "old"]
