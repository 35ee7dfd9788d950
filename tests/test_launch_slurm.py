"""SLURM: one step of srun, and when the job is queued again."""

import shutil
import signal
import subprocess

import pytest
from launching import BASH, ROOT, RUN, eventually, printed

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "4"}


def test_slurm_does_what_the_dry_run_prints(tools):
  dry = tools.run("slurm.sh", *RUN, "--config.note=it's", "--dry-run")
  assert dry.returncode == 0
  submit, step, requeue = printed(dry.stdout)
  assert submit == ["sbatch", "launch/slurm.sh", *RUN, "--config.note=it's"]
  assert step[0] == "srun"
  assert {"--kill-on-bad-exit=0", "--wait=120"} <= set(step)
  end = ["-m", "main", *RUN, "--config.note=it's", "--distributed"]
  assert step[-len(end) :] == end
  assert requeue == ["scontrol", "requeue", "$SLURM_JOB_ID"]
  tools.add("srun", "scontrol", "scancel")
  job = tools.run("slurm.sh", *RUN, "--config.note=it's", **JOB)
  assert job.returncode == 0, job.stderr
  assert tools.calls() == [step]


def test_slurm_wants_a_process_for_each_gpu(tools):
  tools.add("srun")
  job = tools.run("slurm.sh", *RUN, SLURM_GPUS_ON_NODE="8", **JOB)
  assert job.returncode == 2
  assert "possible is --ntasks-per-node=8, one process" in job.stderr
  assert tools.calls() == []
  job = tools.run("slurm.sh", *RUN, SLURM_GPUS_ON_NODE="4", **JOB)
  assert job.returncode == 0


def test_slurm_script_elsewhere_is_told_where_it_belongs(tools, tmp_path):
  result = tools.run("slurm.sh", *RUN, cwd=tmp_path)
  assert result.returncode == 2
  assert "submit launch/slurm.sh from the project's folder" in result.stderr


def test_slurm_copy_works_from_the_projects_folder(tools, tmp_path):
  copy = shutil.copy(ROOT / "launch" / "slurm.sh", tmp_path / "slurm_script")
  tools.add("srun")
  assert tools.run(copy, *RUN, **JOB).returncode == 0
  assert tools.calls()[0][0] == "srun"


def test_slurm_fails_as_the_run_does_and_does_not_come_back(tools):
  tools.add("srun", "scontrol", "scancel")
  tools.answer("srun", "exit 3")
  assert tools.run("slurm.sh", *RUN, **JOB).returncode == 3
  assert [call[0] for call in tools.calls()] == ["srun"]


@pytest.mark.parametrize(
  ("ends_with", "requeued"), [(130, True), (0, False)], ids=["stopped", "done"]
)
def test_slurm_saves_and_queues_again_near_the_end(ends_with, requeued, tools):
  tools.add("srun", "scontrol", "scancel")
  # srun ends some time after its processes have been signalled.
  tools.answer(
    "srun",
    'for i in {1..200}; do [ -e "$here/signalled" ] && break; sleep 0.05; done;'
    f" sleep 0.3; exit {ends_with}",
  )
  tools.answer("scancel", 'touch "$here/signalled"')
  process = subprocess.Popen(
    [BASH, str(ROOT / "launch" / "slurm.sh"), *RUN],
    cwd=ROOT,
    env={"PATH": str(tools.folder), **JOB},
  )
  assert eventually(tools.calls)
  process.send_signal(signal.SIGUSR1)
  assert process.wait(timeout=60) == ends_with
  step, *after = tools.calls()
  assert step[0] == "srun"
  expected = [["scancel", "--signal=TERM", "7"]]
  assert after == expected + [["scontrol", "requeue", "7"]] * requeued
