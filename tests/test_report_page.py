"""One page of runs: whole in itself, and in both lights."""

import os
import re
import shutil
import subprocess

import pytest
from PIL import Image

from vit_ssl_jax.report import __main__ as report
from vit_ssl_jax.train import finetune, pretrain


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
  return tmp_path_factory.mktemp("pages")


@pytest.fixture
def page(pages, pretrain_tiny, finetune_tiny):
  """The page of a pretraining and of two fine-tunings; made once."""
  out = pages / "report.html"
  if not out.exists():
    pretrain.run(pretrain_tiny, pages / "A")
    finetune.run(finetune_tiny, pages / "SCRATCH")
    finetune_tiny.init_from = str(pages / "A")
    finetune.run(finetune_tiny, pages / "B<&")
    runs = [str(pages / name) for name in ("A", "B<&", "SCRATCH")]
    report.main([*runs, f"--out={out}"])
  return out


def test_it_is_whole_in_itself(page):
  text = page.read_text()
  assert not re.search(r'(src|href)="(?!data:|#)[^"]', text)
  assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
  for title in ("Runs", "Accuracy", "Pretraining", "Fine-tuning"):
    assert f"<h2>{title}</h2>" in text
  for alt in ("views", "attention", "features", "confusion"):
    assert f'alt="{alt}"' in text
  assert "from scratch" in text


def test_names_cannot_break_it(page):
  text = page.read_text()
  assert "B<&</h2>" not in text
  assert "B&lt;&amp;</h2>" in text


@pytest.mark.parametrize(
  ("run", "words"),
  [("nothing", "no such folder"), ("empty", "config.json is missing")],
)
def test_no_run(run, words, pages, capsys):
  (pages / "empty").mkdir(exist_ok=True)
  with pytest.raises(SystemExit):
    report.main([str(pages / run), f"--out={pages / 'none.html'}"])
  assert words in capsys.readouterr().err
  assert not (pages / "none.html").exists()


def test_a_run_without_result(page, pages, capsys):
  shutil.copytree(pages / "A", pages / "half", dirs_exist_ok=True)
  (pages / "half" / "result.json").unlink()
  with pytest.raises(SystemExit):
    report.main([str(pages / "half")])
  assert "has not finished" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(width, page, tmp_path):
  browser = shutil.which("chromium")
  if not browser:
    pytest.skip("needs chromium")
  picture = tmp_path / "page.png"
  command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
  command += [f"--window-size={width},3000", f"--screenshot={picture}"]
  subprocess.run(
    [*command, page.as_uri()], check=True, timeout=120, env=os.environ
  )
  found = Image.open(picture).convert("RGB")
  assert found.width == width
  assert len(found.getcolors(10_000_000)) > 500
