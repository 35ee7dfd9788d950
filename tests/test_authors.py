"""The authors' weights by name, from a local server."""

import functools
import http.server
import json
import threading

import numpy as np
import paper
import pytest

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import command, model as networks
from vit_ssl_jax.interop import authors, pretrained

NAME = "vit_cifar10_patch4_input32.pth"


class Handler(http.server.SimpleHTTPRequestHandler):
  cut = None  # bytes after which the connection ends

  def log_message(self, *_):
    pass

  def copyfile(self, source, outputfile):
    outputfile.write(source.read(Handler.cut))


@pytest.fixture
def released(tmp_path, torch, golden_dir):
  """A folder as the release page has it, with small models of the paper's."""
  folder = tmp_path / "release"
  folder.mkdir()
  for arch, patch in (("vit", 4), ("swin", 2), ("cait", 4)):
    _, state, _ = paper.golden(golden_dir, arch)
    path = folder / f"{arch}_cifar10_patch{patch}_input32.pth"
    torch.save(paper.finetuned(torch, state), path)
  return folder


@pytest.fixture
def small(monkeypatch, golden_dir):
  """The golden models' sizes stand for those of the paper."""

  def build(arch, _, dataset, original=networks.build):
    sizes = paper.golden(golden_dir, arch)[2]
    return original(arch, {"model": sizes}, dataset)

  monkeypatch.setattr(networks, "build", build)


@pytest.fixture
def server(released, monkeypatch):
  handler = functools.partial(Handler, directory=str(released))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setattr(authors, "URL", url)
    monkeypatch.setattr(Handler, "cut", None)
    yield running
    running.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return tmp_path / "vit_ssl_jax" / "authors"


def test_names_are_those_of_the_release():
  names = {
    authors.file_name(arch, dataset)
    for arch in authors.ARCHITECTURES
    for dataset in authors.SETS
  }
  assert len(names) == 15
  assert {NAME, "swin_timnet_patch4_input64.pth"} <= names
  assert "cait_cinic_patch4_input32.pth" in names


@pytest.mark.parametrize(
  "name", ["authors:vit", "authors:vit,digits", "authors:"]
)
def test_names_that_nobody_released(name):
  with pytest.raises(UserError, match=r"have not released .* possible are"):
    pretrained.read(name)


def test_an_interrupted_download_leaves_nothing(server, cache, monkeypatch):
  monkeypatch.setattr(Handler, "cut", 1000)
  with pytest.raises(UserError, match="holds no weights: it is truncated"):
    pretrained.read("authors:vit,cifar10")
  assert not list(cache.iterdir())
  monkeypatch.setattr(Handler, "cut", None)
  assert pretrained.read("authors:vit,cifar10").num_classes == 10
  server.shutdown()  # it is downloaded once
  assert pretrained.read("authors:vit,cifar10").num_classes == 10


def test_a_damaged_download_leaves_nothing(server, released, cache, tmp_path):
  (released / "swin_svhn_patch2_input32.pth").write_bytes(b"<html>busy</html>")
  with pytest.raises(UserError, match="holds no weights: it is no safetensors"):
    pretrained.read("authors:swin,svhn")
  assert not list(cache.iterdir())


def test_a_file_that_is_missing(server):
  with pytest.raises(UserError, match="could not download"):
    pretrained.read("authors:cait,svhn")


def test_evaluated_beside_the_published(server, small, tmp_path, capsys):
  rng = np.random.default_rng(0)
  arrays = {}
  for part in ("train", "test"):
    shape = (20, 32, 32, 3)
    arrays[f"{part}_images"] = rng.integers(0, 256, shape, np.uint8)
    arrays[f"{part}_labels"] = np.arange(20) % 10
  np.savez(tmp_path / "x.npz", **arrays)
  command.main([
    "--init_from=authors:vit,cifar10", f"--dataset=npz:{tmp_path / 'x.npz'}",
    "--json",
  ])  # fmt: skip
  found = json.loads(capsys.readouterr().out)["test"]
  assert found["images"] == 20
  assert found["published"] == 96.41
