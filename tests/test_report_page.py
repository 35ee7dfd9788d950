"""One page of runs: whole in itself, and in both lights."""

import re
import shutil
import subprocess

import numpy as np
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
    assert f'aria-label="{alt}"' in text
  assert "from scratch" in text
  # Pictures are drawn in the page's color, as curves are.
  assert "<img" not in text
  assert "currentColor" in text
  assert "#010203" not in text


def test_names_cannot_break_it(page):
  text = page.read_text()
  assert "B<&</h2>" not in text
  assert "B&lt;&amp;</h2>" in text


@pytest.mark.parametrize(
  ("run", "words"),
  [("nothing", "no such folder"), ("empty", "there is no ")],
)
def test_no_run(run, words, pages, capsys):
  (pages / "empty").mkdir(exist_ok=True)
  with pytest.raises(SystemExit):
    report.main([str(pages / run), f"--out={pages / 'none.html'}"])
  assert words in capsys.readouterr().err
  assert not (pages / "none.html").exists()


def test_a_run_without_result(page, pages, capsys):
  shutil.copytree(pages / "SCRATCH", pages / "half")
  (pages / "half" / "result.json").unlink()
  with pytest.raises(SystemExit):
    report.main([str(pages / "half")])
  assert "has not finished" in capsys.readouterr().err
  (pages / "half" / "result.json").write_text('{"step": 1}')
  with pytest.raises(SystemExit):
    report.main([str(pages / "half")])
  assert "without test images" in capsys.readouterr().err


def browse(*arguments):
  """What chromium prints."""
  browser = shutil.which("chromium")
  if not browser:
    pytest.skip("needs chromium")
  command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
  ended = subprocess.run(
    [*command, *arguments], check=True, timeout=120, capture_output=True
  )
  return ended.stdout.decode()


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(("scheme", "white"), [("0", False), ("1", True)])
def test_in_a_browser(width, scheme, white, page, tmp_path):
  picture = tmp_path / "page.png"
  browse(
    f"--window-size={width},3000",
    f"--blink-settings=preferredColorScheme={scheme}",
    f"--screenshot={picture}",
    page.as_uri(),
  )
  found = Image.open(picture).convert("RGB")
  assert found.width == width
  assert len(found.getcolors(10_000_000)) > 500
  light = np.mean(np.asarray(found.convert("L")) > 250)
  assert (light > 0.5) if white else (light < 0.1)


@pytest.mark.long
def test_a_telephone_scrolls_downwards_alone(page, tmp_path):
  measure = "<script>parent.postMessage(document.body.scrollWidth,'*')</script>"
  inner = page.read_text().replace("</body>", f"{measure}</body>")
  (tmp_path / "inner.html").write_text(inner)
  outer = tmp_path / "outer.html"
  # A window cannot be as narrow as a frame can.
  outer.write_text(
    "<script>onmessage = e => document.title = 'width ' + e.data</script>"
    "<iframe src=inner.html style='width: 400px; height: 900px; border: 0'>"
  )
  text = browse("--virtual-time-budget=5000", "--dump-dom", outer.as_uri())
  width = re.search("<title>width ([0-9]+)<", text)
  assert int(width[1]) <= 400
