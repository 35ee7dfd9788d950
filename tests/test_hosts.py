"""Two processes that train as one, over gloo's collectives on this machine."""

import fcntl
import json
import re
import socket

import jax
import numpy as np
import processes
import pytest
import tiny

from vit_ssl_jax import files, train
from vit_ssl_jax.data import cache
from vit_ssl_jax.run import checkpoints, metrics

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
KILLED = UNLUCKY.replace("KILLED", "True")
TERMINATED = UNLUCKY.replace("KILLED", "False")
SPLIT = """
from vit_ssl_jax import main
from vit_ssl_jax.parallel import mesh

mesh.SMALLEST = 1
main.run()
"""


def free_port():
  """A port that nobody listens at."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def run_two(context, code, arguments):
  """The exit status and the lines printed of two processes of one run."""
  port = free_port()
  started = [
    processes.Run(
      context,
      arguments,
      code,
      {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
      },
    )
    for index in range(2)
  ]
  ended = []
  for status, text in [process.wait() for process in started]:
    # Gloo itself says whom it is connected to.
    lines = [line for line in text.splitlines() if "[Gloo]" not in line]
    ended.append((status, lines))
    print(f"process {len(ended) - 1}: {ended[-1]}"[:3000])
  return ended


def train_two(context, code, config, workdir, **changes):
  flags = tiny.flags(config, workdir, **changes)
  return run_two(context, code, ["--distributed", *flags])


def alone(config, workdir, max_steps=0):
  """Trains in this process, on two devices; the result."""
  config = config.copy_and_resolve_references()
  config.max_steps = max_steps
  return train.run(config, workdir)


def assert_same_run(workdir, expected):
  """Asserts that two runs ended with the same numbers, to rounding.

  Adam's step does not shrink with the gradient, so rounding shows there.
  """
  lines, others = metrics.read(workdir), metrics.read(expected)
  assert [line["step"] for line in lines] == list(range(1, 10))
  for line, other in zip(lines, others, strict=True):
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


def test_killed_terminated_and_split(pretrain_tiny, fork_server, tmp_path):
  """A pretraining by 2, by 1, and again by 2 processes, twice cut short."""
  workdir = tmp_path / "two"
  killed = train_two(fork_server, KILLED, pretrain_tiny, workdir)
  assert [status for status, _ in killed] == [1, -9]
  assert "Connection" in "".join(killed[0][1])  # nobody waits for the dead
  assert not (workdir / "result.json").exists()
  # Step 3 is asked for again: what was saved last is of step 2.
  for status, lines in train_two(
    fork_server, TERMINATED, pretrain_tiny, workdir
  ):
    assert status == 130
    assert re.search("stopped at step [34] of 9 with a checkpoint", lines[-1])
  assert checkpoints.read(workdir)[0]["step"] in (3, 4)
  assert not (workdir / "result.json").exists()
  assert alone(pretrain_tiny, workdir, max_steps=6)["step"] == 6
  first, second = train_two(
    fork_server, SPLIT, pretrain_tiny, workdir, **{"mesh.fsdp": 2}
  )
  assert first[0] == 0
  assert any("resuming from step 6 of 9" in line for line in first[1])
  assert second == (0, [])  # process 0 alone speaks
  result = alone(pretrain_tiny, tmp_path / "one")
  assert_same_run(workdir, tmp_path / "one")
  ours = json.loads((workdir / "result.json").read_text())
  assert ours.keys() == result.keys()
  assert ours["knn"] == result["knn"]
  # The digest is of the whole state, each half of which lay elsewhere.
  (workdir / "result.json").unlink()
  again = alone(pretrain_tiny, workdir)
  assert again["state_sha256"] == ours["state_sha256"]


def test_finetuning_by_two(finetune_tiny, make_workdir, fork_server, tmp_path):
  finetune_tiny.init_from = str(make_workdir("pretrain", "vit", ["0", "1"]))
  code = "from vit_ssl_jax import main; main.run()"
  ended = train_two(fork_server, code, finetune_tiny, tmp_path / "two")
  assert [status for status, _ in ended] == [0, 0]
  result = alone(finetune_tiny, tmp_path / "one")
  assert_same_run(tmp_path / "two", tmp_path / "one")
  ours = json.loads((tmp_path / "two" / "result.json").read_text())
  assert ours["top1"] == result["top1"]


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
workdir.SHARED_SECONDS = 0.3
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
found = sentence(checkpoints.restore, path, None)
assert "steps is [4] on process 0 and [5] on process 1" in found

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


def test_processes_agree(fork_server, tmp_path):
  first, second = run_two(fork_server, AGREE, [str(tmp_path)])
  assert first == (0, ["process 0"])
  assert second == (0, [])


def test_one_at_a_time_on_a_machine():
  """While one reads a data set, another waits for it."""
  lock = files.cache_directory("lock")
  with cache.in_turn(), lock.open() as other, pytest.raises(BlockingIOError):
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
  with lock.open() as other:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.long
@pytest.mark.parametrize("arch", ["swin", "cait"])
def test_other_architectures(arch, make_tiny, fork_server, tmp_path):
  """Both stages, with parameters split over two processes."""
  tuning = make_tiny("finetune", arch)
  tuning.init_from = str(tmp_path / "pretrain" / "one")
  for config in (make_tiny("pretrain", arch), tuning):
    folder = tmp_path / config.stage
    alone(config, folder / "one")
    config.mesh.fsdp = 2
    ended = train_two(fork_server, SPLIT, config, folder / "two")
    assert [status for status, _ in ended] == [0, 0]
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
    ({"JAX_NUM_PROCESSES": None}, "cannot detect the processes of this run"),
    ({"JAX_COORDINATOR_ADDRESS": "here"}, "cannot detect the processes"),
    ({"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID=one must be a whole number"),
  ],
)
def test_the_others_are_not_there(changes, words, fork_server):
  environment = {
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
  } | changes
  status, text = processes.Run(
    fork_server, code=ALONE, environment=environment
  ).wait()
  assert status == 2
  assert words in text
  assert len(text.splitlines()) == 1
