"""The manual is a site without a broken link."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def test_the_site_builds(tmp_path):
  command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
  done = subprocess.run(
    [*command, f"--site-dir={tmp_path}"],
    cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  for page in (ROOT / "docs").rglob("*.md"):
    name = page.relative_to(ROOT / "docs").with_suffix("")
    name = "" if page.stem == "index" else name
    assert (tmp_path / name / "index.html").is_file(), page
  assert "knn_accuracy" in (tmp_path / "api" / "index.html").read_text()
