"""The report: a self-contained page, its figures, statistics over seeds."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn import decomposition, manifold

from vit_ssl_jax import files
from vit_ssl_jax.report import build, figures, seeds


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trained, make_workdir):
  """The folder of a pretraining A and two fine-tunings, B<& and SCRATCH."""
  folder = tmp_path_factory.mktemp("runs")
  workdir, result = trained
  for name in ("B<&", "SCRATCH"):
    shutil.copytree(workdir, folder / name)
  path = folder / "B<&" / "config.json"
  config = json.loads(path.read_text()) | {"init_from": str(folder / "A")}
  path.write_text(json.dumps(config))
  shutil.copytree(make_workdir("pretrain", "vit", ["0", "1"]), folder / "A")
  knn = {"knn": 61.25, "knn_raw_pixels": 52.5, "knn_untrained": 43.75}
  (folder / "A" / "result.json").write_text(json.dumps(result | knn))
  lines = (workdir / "metrics.jsonl").read_text().replace("top1", "knn")
  (folder / "A" / "metrics.jsonl").write_text(lines)
  return folder


@pytest.fixture(scope="module")
def page(runs):
  """The page of all three."""
  out = runs / "report.html"
  workdirs = [str(runs / name) for name in ("A", "B<&", "SCRATCH")]
  with pytest.MonkeyPatch.context() as patch:
    # t-SNE takes seconds; the pictures' own test draws it.
    patch.setattr(
      manifold, "TSNE", lambda **_: decomposition.PCA(2, random_state=0)
    )
    build.main([*workdirs, f"--out={out}"])
  return out


def test_the_page_is_self_contained(page):
  text = page.read_text()
  assert not re.search(r'(src|href)="(?!data:|#)[^"]', text)
  assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
  for title in ("Runs", "Accuracy", "Pretraining", "Fine-tuning"):
    assert f"<h2>{title}</h2>" in text
  for alt in ("views", "attention", "features", "confusion"):
    assert f'aria-label="{alt}"' in text
  for words in ("from scratch", "61.25", "52.50", "43.75"):
    assert words in text
  # Pictures are drawn in the page's color, as curves are.
  assert "<img" not in text
  assert "currentColor" in text
  assert "#010203" not in text
  # Titles are escaped.
  assert "B<&</h2>" not in text
  assert "B&lt;&amp;</h2>" in text


def refused(capsys, *arguments):
  with pytest.raises(SystemExit):
    build.main([*map(str, arguments)])
  return capsys.readouterr().err


def test_folders_without_a_finished_run_are_refused(runs, tmp_path, capsys):
  out = f"--out={tmp_path / 'none.html'}"
  assert "no such folder" in refused(capsys, tmp_path / "nothing", out)
  assert "config.json" in refused(capsys, tmp_path, out)
  half = shutil.copytree(runs / "SCRATCH", tmp_path / "half")
  (half / "result.json").unlink()
  assert "has not finished" in refused(capsys, half, out)
  (half / "result.json").write_text('{"step": 1}')
  assert "without test images" in refused(capsys, half, out)
  assert "given twice" in refused(capsys, *[runs / "A"] * 2, out)
  assert not (tmp_path / "none.html").exists()


def browse(*arguments):
  """Returns what chromium prints."""
  browser = shutil.which("chromium")
  if not browser:
    pytest.skip("needs chromium")
  command = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
  return subprocess.run(
    [*command, *arguments], check=True, timeout=120, capture_output=True
  ).stdout.decode()


@pytest.mark.long
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(("scheme", "white"), [("0", False), ("1", True)])
def test_a_browser_shows_both_themes(width, scheme, white, page, tmp_path):
  browse(
    f"--window-size={width},3000",
    f"--blink-settings=preferredColorScheme={scheme}",
    f"--screenshot={tmp_path}/page.png",
    page.as_uri(),
  )
  picture = Image.open(tmp_path / "page.png").convert("RGB")
  assert picture.width == width
  assert len(picture.getcolors(10_000_000)) > 500
  light = np.mean(np.asarray(picture.convert("L")) > 250)
  assert (light > 0.5) if white else (light < 0.1)


@pytest.mark.long
def test_a_phone_scrolls_vertically_alone(page, tmp_path):
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


@pytest.mark.parametrize(("objective", "masked"), [("views", 0), ("mae", 2)])
def test_the_summary_draws_what_was_measured(
  objective, masked, tiny_npz, tmp_path
):
  for name, metric in (("pretrain", "knn"), ("tune", "top1")):
    (tmp_path / name).mkdir()
    lines = [
      {"step": i, "epoch": i, "loss": i + 0.5, metric: 50 + i, "seconds": 1}
      for i in (1, 2)
    ]
    lines = [json.dumps(line) + "\n" for line in lines]
    files.write(tmp_path / name / "metrics.jsonl", "".join(lines))
  config = tiny.config("pretrain", "vit", tiny_npz)
  config.objective = objective
  images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
  maps = np.random.default_rng(0).random((3, 2, 2))
  fig = figures.draw_summary(
    config, images, maps, tmp_path / "pretrain", {"x": tmp_path / "tune"}
  )
  curves = [
    line.get_xydata().tolist() for axis in fig.axes for line in axis.lines
  ]
  assert curves == [
    [[1, 1.5], [2, 2.5]], [[0.5, 51], [1, 52]], [[1, 51], [2, 52]]
  ]  # fmt: skip
  titles = [axis.get_title() for axis in fig.axes]
  assert titles.count("global") == titles.count("local") == 2
  assert titles.count("visible patches") == masked
  np.testing.assert_array_equal(fig.axes[-6].images[0].get_array(), images[0])
  for axis, attention in zip(fig.axes[-3:], maps, strict=True):
    np.testing.assert_array_equal(axis.images[1].get_array(), attention)


def test_a_contact_sheet_of_a_class_without_images(tiny_npz):
  images = np.zeros((2, 8, 8, 3), np.uint8)
  rows = [("none", images[:0]), ("some", images)]
  config = tiny.config("pretrain", "vit", tiny_npz)
  axes = figures.draw_contact_sheet(config, rows).axes
  assert [axis.get_title(loc="left") for axis in axes[:4:2]] == ["none", "some"]
  assert [len(axis.images) for axis in axes[:4]] == [0, 0, 1, 1]


def run(seed, top1, init_from="", **changes):
  """A fine-tuning as `build.read_run` gives it."""
  config = {"model": {"name": "vit", "depth": 9}, "dataset": "cifar10"}
  config |= {"data_fraction": 1.0, "seed": seed, "split_seed": 0}
  config |= {"init_from": init_from, "epochs": 300, "log_every_steps": 20}
  title = f"{init_from}{seed}{changes}"
  return {"title": title, "config": config | changes, "result": {"top1": top1}}


SCRATCH = [run(0, 90.0), run(1, 91.0), run(2, 92.0), run(3, 10.0)]
PRETRAINED = [run(2, 96.0, "C"), run(0, 95.0, "A"), run(1, 97.0, "B")]
ALL = "vit, 100 % of the images"


def test_intervals_by_hand():
  # Mean 2, standard deviation 1; t is 4.30265 with two degrees of freedom.
  assert seeds.interval([1, 2, 3]) == pytest.approx((-0.48414, 4.48414), 1e-4)
  # Mean 5, deviation sqrt(2); t is 12.7062 with one.
  assert seeds.interval([4.0, 6.0]) == pytest.approx((-7.7062, 17.7062), 1e-5)
  assert seeds.interval([90.0, 90.0]) == (90.0, 90.0)
  assert seeds.interval([90.0]) is None


def test_bars_have_intervals():
  fig = figures.draw_bars({"a": [1.0, 2.0, 3.0], "b": [50.0]})
  bars = [x for x in fig.axes[0].containers if getattr(x, "has_xerr", False)]
  assert len(bars) == 1  # one seed has none
  ends = bars[0].lines[2][0].get_segments()[0][:, 0]
  assert ends == pytest.approx([-0.48414, 4.48414], 1e-4)


@pytest.mark.parametrize(
  ("changes", "titles"),
  [
    ({"epochs": 9}, [f"{ALL}, epochs 300", f"{ALL}, epochs 9"]),
    ({"data_fraction": 0.25}, [ALL, "vit, 25 % of the images"]),
    (
      {"dataset": "svhn"},
      ["vit, cifar10, 100 % of the images", "vit, svhn, 100 % of the images"],
    ),
    (
      {"model": {"name": "vit", "depth": 3}},
      [f"{ALL}, model.depth 9", f"{ALL}, model.depth 3"],
    ),
    ({"model": {"name": "swin"}}, [ALL, "swin, 100 % of the images"]),
    ({"log_every_steps": 1}, [ALL]),
    ({"split_seed": 5}, [ALL]),
  ],
)
def test_runs_that_differ_by_their_seed_alone_are_one_group(changes, titles):
  groups = seeds.group([run(0, 90.0), run(1, 80.0, **changes)])
  assert list(groups) == titles
  assert sum(len(x["from scratch"]) for x in groups.values()) == 2


def test_a_repeated_seed_is_a_group_of_its_own():
  groups = seeds.group([run(0, 95.0, "A"), run(0, 97.0, "B")])
  assert list(groups) == [ALL, f"{ALL} (B0{{}})"]


def test_gains_are_paired_by_seed():
  section = build.compare(SCRATCH + PRETRAINED)
  tables = [x["rows"] for x in section.parts if x["kind"] == "table"]
  assert tables[0][1] == [
    f"{ALL}, pretrained", "3", "96.00", "1.00", "93.52 to 98.48",
  ]  # fmt: skip
  # 5, 6 and 4 points; the seed without a partner does not count.
  assert tables[1] == [[ALL, "3", "+5.00", "1.00", "+2.52 to +7.48"]]
  notes = [x["text"] for x in section.parts if x["kind"] == "note"]
  assert "Student's t" in notes[0]
  assert "paired" in notes[1]
  section = build.compare(SCRATCH[:1])
  (table,) = [x["rows"] for x in section.parts if x["kind"] == "table"]
  assert table == [[f"{ALL}, from scratch", "1", "90.00", "-", "-"]]
