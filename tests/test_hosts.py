"""Two processes that train as one, over gloo's collectives on this machine."""

import fcntl
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from vit_ssl_jax import files, train
from vit_ssl_jax.data import cache
from vit_ssl_jax.run import checkpoints, metrics

ROOT = pathlib.Path(__file__).parent.parent
MAIN = ["-m", "main"]
SECONDS = 300  # after which something hangs
# The command line, in which process 1 does something to itself once it asks
# for the images of step 3 or a later one; all parameters are split.
UNLUCKY = """
import dataclasses, os, pathlib, signal, sys, time
from vit_ssl_jax import main
from vit_ssl_jax.data import load
from vit_ssl_jax.parallel import mesh

mesh.SMALLEST = 1
real = load.open_data

def open_data(config, mesh, dataset=None):
  config, dataset, source = real(config, mesh, dataset)

  def items(start):
    for step, item in enumerate(source.items(start), start + 1):
      if step == 3 and os.environ["JAX_PROCESS_ID"] == "1":
        unlucky()
      yield item

  return config, dataset, dataclasses.replace(source, items=items)

def unlucky():
  saved = pathlib.Path(main.FLAGS.workdir, "checkpoints", "2")
  while KILLED and not saved.exists():
    time.sleep(0.01)
  os.kill(os.getpid(), signal.SIGKILL if KILLED else signal.SIGTERM)
  time.sleep(2)  # a step takes milliseconds, to be heard takes longer

load.open_data = open_data
main.run()
"""
KILLED, TERMINATED = (
  ["-c", UNLUCKY.replace("KILLED", str(killed))] for killed in (True, False)
)
SPLIT = [
  "-c",
  "from vit_ssl_jax import main\nfrom vit_ssl_jax.parallel import mesh\n"
  "mesh.SMALLEST = 1\nmain.run()",
]


def free_port():
  """A port that nobody listens at."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def start(arguments, index, port):
  """Starts Python as one of two processes, of one device."""
  environment = os.environ | {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": str(index),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    "XLA_FLAGS": os.environ["XLA_FLAGS"]
    + " --xla_force_host_platform_device_count=1",
  }
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run_two(*arguments):
  """Runs Python twice, as two processes of one run.

  Args:
    *arguments: those of both, or of each.

  Returns:
    For each its exit status and what it said on standard output and error.
  """
  port = free_port()
  both = arguments * (2 // len(arguments))
  started = [start(given, i, port) for i, given in enumerate(both)]
  try:
    said = [process.communicate(timeout=SECONDS) for process in started]
  finally:
    for process in started:
      process.kill()
      process.wait()
  ended = []
  for process, (out, err) in zip(started, said, strict=True):
    # Gloo itself says whom it is connected to.
    lines = [line for line in out.splitlines() if "[Gloo]" not in line]
    ended.append((process.returncode, lines, err))
    print(f"process {len(ended) - 1}: {ended[-1]}"[:3000])
  return ended


def train_two(how, flags):
  return run_two([*how, "--distributed", *flags])


def alone(config, workdir, max_steps=0):
  """Trains in this process, on two devices; the result."""
  config = config.copy_and_resolve_references()
  config.max_steps = max_steps
  return train.run(config, workdir)


def assert_same_run(workdir, expected):
  """Asserts that two runs ended with the same numbers, to rounding.

  Adam's step does not shrink with the gradient, so rounding shows there.
  """
  ours, theirs = metrics.read(workdir), metrics.read(expected)
  assert [line["step"] for line in ours] == list(range(1, 10))
  for line, other in zip(ours, theirs, strict=True):
    assert line.keys() == other.keys()
    names = line.keys() - {"seconds"}
    np.testing.assert_allclose(
      [line[x] for x in names], [other[x] for x in names], 1e-3, 2e-5
    )
  states = (checkpoints.read(x)[0] for x in (workdir, expected))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 2e-5), *states
  )
  assert not list(workdir.rglob("*.tmp"))


@pytest.fixture
def pretrained(memory, pretrain_tiny, command_line, tmp_path_factory):
  """A pretraining of 2, of 1 and again of 2 processes; how each ended."""
  if "pretrained" not in memory:
    workdir = tmp_path_factory.mktemp("pretrained")
    flags = command_line(pretrain_tiny, workdir)
    ended = [train_two(KILLED, flags)]
    assert not (workdir / "result.json").exists()
    ended += [alone(pretrain_tiny, workdir, max_steps=5)]
    ended += [train_two(MAIN, flags)]
    memory["pretrained"] = workdir, ended
  return memory["pretrained"]


def test_pretraining_killed_and_resumed(pretrained, pretrain_tiny, tmp_path):
  workdir, (killed, one, two) = pretrained
  assert [status for status, _, _ in killed] == [1, -9]
  assert "Connection" in killed[0][2]  # nobody waits for the dead
  assert one["step"] == 5
  assert [status for status, _, _ in two] == [0, 0]
  assert "resuming from step 5 of 9" in two[0][2]
  assert two[0][1][0].startswith("result")
  assert two[1][1:] == ([], "")  # one alone speaks
  result = alone(pretrain_tiny, tmp_path)
  assert_same_run(workdir, tmp_path)
  ours = json.loads((workdir / "result.json").read_text())
  assert ours.keys() == result.keys()
  assert ours["knn"] == result["knn"]


def test_finetuning_terminated_and_split(
  pretrained, finetune_tiny, command_line, tmp_path
):
  finetune_tiny.init_from = str(pretrained[0])
  workdir = tmp_path / "two"
  flags = command_line(finetune_tiny, workdir)
  for status, out, err in train_two(TERMINATED, flags):
    assert (status, out) == (130, [])
    assert re.search("stopped at step [34] of 9 with a checkpoint", err)
  assert checkpoints.read(workdir)[0]["step"] in (3, 4)
  assert not (workdir / "result.json").exists()
  assert alone(finetune_tiny, workdir, max_steps=6)["step"] == 6
  flags = [*flags, "--config.mesh.fsdp=2"]
  first, second = train_two(SPLIT, flags)
  assert (first[0], second) == (0, (0, [], ""))
  alone(finetune_tiny, tmp_path / "one")
  assert_same_run(workdir, tmp_path / "one")
  # The digest is of the whole state, each half of which lay elsewhere.
  result = json.loads((workdir / "result.json").read_text())
  (workdir / "result.json").unlink()
  again = alone(finetune_tiny, workdir)
  assert again["state_sha256"] == result["state_sha256"]
  assert again["top1"] == result["top1"]


AGREE = """
import pathlib, sys, time
from vit_ssl_jax.parallel import hosts
hosts.SHUTDOWN_SECONDS = 5
hosts.start()
import jax, numpy as np
from vit_ssl_jax import cli, evaluate
from vit_ssl_jax.run import checkpoints, metrics, workdir
from vit_ssl_jax.parallel import mesh as sharding
from vit_ssl_jax.data import batches, cache, load as data
from vit_ssl_jax.recipes import finetune

index, folder = jax.process_index(), pathlib.Path(sys.argv[1])
assert jax.process_count() == 2

def sentence(function, *args):
  try:
    function(*args)
  except hosts.UserError as e:
    return str(e)

# Values of any length.
assert hosts.all_gather("ab" * (1 + 99 * index)) == ["ab", "ab" * 100]
assert hosts.broadcast({"process": index}) == {"process": 0}

# What one raises all raise.
def raising():
  with hosts.sync_errors():
    if index == 1:
      raise hosts.UserError("no such image")

assert sentence(raising) == ["process 1: no such image", "no such image"][index]

# Configs, data sets, checkpoints and folders that are not the same.
config = finetune.get_config("vit,cifar10")
config.data_dir = str(index)  # may be
assert sentence(workdir.claim, config, folder / "unlike") is None
config.optim.weight_decay = 0.1 * index
found = sentence(workdir.claim, config, folder / "unlike")
assert "optim.weight_decay is 0.0 on process 0 and 0.1 on process 1" in found
found = sentence(hosts.assert_equal, {"images.train": 5 + index}, "data set")
assert "data set: images.train is 5 on process 0 and 6 on process 1" in found
workdir.PATIENCE = 0.3
for path, wrong in ((folder, False), (folder / "new" / "er", False),
                    (folder / str(index), True)):
  if wrong:
    path.mkdir()
  found = sentence(workdir.check_shared, path)
  assert bool(found) == wrong, found
assert "is not seen by 1" in found
hosts.all_gather(None)  # the first is done with it too
assert not list(folder.rglob("*.tmp"))

path = folder / f"own_{index}"
(path / "checkpoints" / str(4 + index)).mkdir(parents=True)
found = sentence(checkpoints.agreed_steps, path)
assert "the newest are of the steps 4, 5" in found

# The first reads the data before the other does.
def load(*_, progress, **__):
  assert progress == (index == 0)
  if index == 0:
    time.sleep(0.3)
    (folder / "prepared").touch()
  return (folder / "prepared").exists()

data.load = load
assert data.load_config(config)

# Outputs for every image, whole on every process; 5 of them in batches of 4.
mesh = sharding.make_mesh(2, 4)
images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
function = jax.jit(lambda x: x.sum((1, 2, 3)))
out = evaluate.extract(function, images, 3, sharding.batch_sharding(mesh))
np.testing.assert_array_equal(out, images.sum((1, 2, 3)))

# Where images are kept is where the smallest host can keep them.
cache.memory = lambda: [10**9, 100][index]
assert batches.auto_placement(images.nbytes, 0.5, mesh) == "disk"
source = batches.make_source(
  images, np.arange(5), 4, seed=0, mesh=mesh, placement="disk"
)
batch = next(source.items(0))
assert [x.data.shape for x in batch["label"].addressable_shards] == [(2,)]
rows = batches.order(0, 0, 5)[:4]
whole = np.asarray(hosts.replicated(batch["image"]))
np.testing.assert_array_equal(whole, images[rows])

# A state of which each process holds a half.
sharding.SMALLEST = 1
state = {"a": np.arange(8, dtype=np.float32), "b": np.float32(3)}
split = sharding.device_put_global(state, sharding.state_sharding(mesh, state))
assert not split["a"].is_fully_replicated
assert checkpoints.sha256(split) == checkpoints.sha256(state)

# One writes, whatever the folder.
mine = folder / f"run{index}"
mine.mkdir()
recorder = metrics.Recorder(mine, 0, 3, tensorboard=False)
recorder.add(range(1, 2), {"loss": np.float32(0.5)})
recorder.flush()
assert recorder.recent[-1]["loss"] == 0.5
assert len(metrics.read(mine)) == (index == 0)
cli.log(f"process {index}")
"""


def test_processes_agree(tmp_path):
  first, second = run_two(["-c", AGREE, str(tmp_path)])
  assert first == (0, [], "process 0\n")
  assert second == (0, [], "")


def test_one_at_a_time_on_a_machine():
  """While one reads a data set, another waits for it."""
  lock = files.cache_directory("lock")
  with cache.in_turn(), lock.open() as other, pytest.raises(BlockingIOError):
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
  with lock.open() as other:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.long
@pytest.mark.parametrize("arch", ["swin", "cait"])
def test_other_architectures(arch, make_tiny, command_line, tmp_path):
  """Both stages, with parameters split over two processes."""
  tuning = make_tiny("finetune", arch)
  tuning.init_from = str(tmp_path / "pretrain" / "one")
  for config in (make_tiny("pretrain", arch), tuning):
    folder = tmp_path / config.stage
    alone(config, folder / "one")
    config.mesh.fsdp = 2
    ended = train_two(SPLIT, command_line(config, folder / "two"))
    assert [status for status, _, _ in ended] == [0, 0]
    assert_same_run(folder / "two", folder / "one")


ALONE = """
from vit_ssl_jax import cli
from vit_ssl_jax.parallel import hosts
with cli.reporting_errors():
  hosts.start(timeout=1)
"""


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({}, "the other processes were not found in 1 seconds"),
    ({"JAX_NUM_PROCESSES": None}, "cannot be told which processes belong"),
    ({"JAX_COORDINATOR_ADDRESS": "here"}, "cannot be told which processes"),
    ({"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID=one has to be a whole number"),
  ],
)
def test_the_others_are_not_there(changes, words):
  environment = os.environ | {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
  }
  environment |= changes
  environment = {k: v for k, v in environment.items() if v is not None}
  done = subprocess.run(
    [sys.executable, "-c", ALONE],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=SECONDS,
  )
  assert done.returncode == 2
  assert words in done.stderr
  assert len(done.stderr.splitlines()) == 1
