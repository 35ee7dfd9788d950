"""The manual is a site without a broken link, and the citation is valid."""

import os
import pathlib
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).parent.parent


def test_the_site_builds(tmp_path):
  command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
  done = subprocess.run(
    [*command, f"--site-dir={tmp_path}"],
    cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  for page in (ROOT / "docs").glob("*.md"):
    name = "" if page.stem == "index" else page.stem
    assert (tmp_path / name / "index.html").is_file(), page
  assert "knn_accuracy" in (tmp_path / "api" / "index.html").read_text()


def test_the_citation_names_the_paper():
  found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert found["version"] in (ROOT / "setup.py").read_text()
  assert found["preferred-citation"]["year"] == 2022


def test_readme_is_a_front_page():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 200
