"""Multi-process runs: start, consistency checks, collective errors.

All processes must call these functions in the same order, except `start`,
`is_primary` and `single_process`. With one process they cost nothing.
"""

import contextlib
import json
import os
import sys
import threading
import traceback

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P

from vit_ssl_jax.errors import UserError, line

COUNT, INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SHUTDOWN_SECONDS = 60  # a finished process waits this long for the others


def start(timeout=300):
  """Connects the processes of a run, before JAX's backend starts.

  JAX detects them on TPU VMs and under SLURM, Open MPI and Kubernetes.
  Elsewhere JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES
  and JAX_PROCESS_ID must be set. After `timeout` seconds the program exits with
  one sentence and status 2.

  Raises:
    UserError: the processes cannot be detected or reached.
  """
  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  count, index = _environment_int(COUNT), _environment_int(INDEX)
  explicit = address and None not in (count, index)
  missing = (
    "--distributed: the other processes were not found{}: all must be started,"
    f" and must reach process 0 at {address or 'its address'}"
  )
  # JAX itself would abort with a C++ stack trace.
  alarm = threading.Timer(
    timeout,
    _exit_now,
    [2, "error: " + missing.format(f" in {timeout} seconds")],
  )
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      num_processes=count,
      process_id=index,
      cluster_detection_method="deactivate" if explicit else None,
      initialization_timeout=timeout + 60,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
  except (ValueError, TypeError, KeyError, IndexError) as e:
    raise UserError(
      f"--distributed: cannot detect the processes of this run ({line(e)}):"
      " start them on a TPU VM or under SLURM, Open MPI or Kubernetes, or set"
      f" JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0, {COUNT} and {INDEX}"
    ) from e
  except (RuntimeError, OSError) as e:
    raise UserError(missing.format(f" ({line(e)})")) from e
  finally:
    alarm.cancel()


def _exit_now(status, text):
  """Exits without waiting for other threads."""
  print(text, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(status)


def _environment_int(name):
  value = os.environ.get(name)
  if value is not None and not value.isdecimal():
    raise UserError(f"{name}={value} must be a whole number")
  return None if value is None else int(value)


def is_primary():
  """True on process 0, which writes files and logs."""
  return jax.process_index() == 0


def single_process():
  return jax.process_count() == 1


def all_gather(value):
  """Returns the JSON values of all processes, in their order."""
  if single_process():
    return [value]
  content = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(content)))
  # Padded to a power of two, so that few lengths are compiled.
  room = 1 << int(max(sizes) - 1).bit_length()
  padded = np.pad(content, (0, room - len(content)))
  rows = multihost_utils.process_allgather(padded)
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(rows, sizes, strict=True)
  ]


def broadcast(value):
  """Broadcasts process 0's JSON value to all processes."""
  return all_gather(value if is_primary() else None)[0]


def assert_equal(values, name):
  """Raises a UserError on all processes if a flat dict differs between them."""
  first, *others = all_gather(values)
  for index, other in enumerate(others, 1):
    for key in sorted(other.keys() | first.keys()):
      if other.get(key) != first.get(key):
        raise UserError(
          f"all processes must have the same {name}: {key} is"
          f" {first.get(key)!r} on process 0 and {other.get(key)!r} on"
          f" process {index}"
        )


@contextlib.contextmanager
def sync_errors():
  """Raises a UserError of one process on all; the body must not synchronise."""
  error = None
  try:
    yield
  except UserError as e:
    error = e
  messages = all_gather(error and str(error))
  if error:
    raise error
  for index, message in enumerate(messages):
    if message:
      raise UserError(f"process {index}: {message}")


def reached_preemption(number):
  """True on all processes at the same call once SIGTERM reached one of them."""
  if single_process():
    return False
  return multihost_utils.reached_preemption_sync_point(number)


def replicated(x):
  """Returns an array that may be sharded over hosts, whole on each of them."""
  if not isinstance(x, jax.Array):
    return x
  if x.is_fully_addressable or x.is_fully_replicated:
    return x
  return jax.jit(_identity, out_shardings=NamedSharding(x.sharding.mesh, P()))(
    x
  )


def _identity(x):
  return x


@contextlib.contextmanager
def exit_on_error():
  """Exits at once on an unexpected error so that no other process hangs."""
  try:
    yield
  except (UserError, KeyboardInterrupt):  # they reach all processes anyway
    raise
  except Exception:
    if single_process():
      raise
    _exit_now(1, traceback.format_exc())
