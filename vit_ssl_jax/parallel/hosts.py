"""The processes of one run: how they start, agree, and fail together.

All processes must call all functions here but `start`, `is_primary` and
`single_process`, in the same order. With one process they cost nothing.
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
# How long a process that has ended waits for the others to end too.
SHUTDOWN_SECONDS = 60


def start(timeout=300):
  """Joins this process to the others of its run, before JAX's backend starts.

  JAX finds them by itself on TPU VMs and under SLURM, Open MPI and Kubernetes;
  elsewhere JAX_COORDINATOR_ADDRESS (the first process's HOST:PORT),
  JAX_NUM_PROCESSES and JAX_PROCESS_ID name them.

  Args:
    timeout: seconds to wait for the others; then the program ends with one
      sentence and status 2.

  Raises:
    UserError: it cannot be told who the others are, or they cannot be reached.
  """
  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  count, index = _number(COUNT), _number(INDEX)
  named = address and None not in (count, index)
  missing = (
    "--distributed: the other processes were not found{}: all have to be"
    f" started, and to reach the first at {address or 'its address'}"
  )
  # JAX itself would abort with a trace of its C++ functions.
  alarm = threading.Timer(
    timeout, _leave, [2, "error: " + missing.format(f" in {timeout} seconds")]
  )
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      num_processes=count,
      process_id=index,
      cluster_detection_method="deactivate" if named else None,
      initialization_timeout=timeout + 60,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
  except (ValueError, TypeError, KeyError, IndexError) as e:
    raise UserError(
      f"--distributed: it cannot be told which processes belong together"
      f" ({line(e)}): start them on a TPU VM or under SLURM, Open MPI or"
      " Kubernetes, or set JAX_COORDINATOR_ADDRESS=HOST:PORT of the first,"
      f" {COUNT} and {INDEX} for each"
    ) from e
  except (RuntimeError, OSError) as e:
    raise UserError(missing.format(f" ({line(e)})")) from e
  finally:
    alarm.cancel()


def _leave(status, text):
  """Ends the program at once, whatever its other threads wait for."""
  print(text, file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _number(name):
  """An environment variable as a number, or None where it is not set."""
  value = os.environ.get(name)
  if value is None:
    return None
  if not value.isdecimal():
    raise UserError(f"{name}={value} has to be a whole number")
  return int(value)


def is_primary():
  """Whether this process is the one that writes and speaks."""
  return jax.process_index() == 0


def single_process():
  """Whether there is one process only."""
  return jax.process_count() == 1


def all_gather(value):
  """What every process gives, a list in their order.

  Args:
    value: anything that JSON can hold.
  """
  if single_process():
    return [value]
  content = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(content)))
  # A power of two, so that few lengths have to be compiled.
  room = 1 << int(max(sizes) - 1).bit_length()
  padded = np.pad(content, (0, room - len(content)))
  found = multihost_utils.process_allgather(padded)
  return [
    json.loads(x[:size].tobytes()) for x, size in zip(found, sizes, strict=True)
  ]


def assert_equal(value, what):
  """Raises a UserError on all processes where not all give the same.

  Args:
    value: a flat dict that JSON can hold.
    what: what it is, for the sentence.
  """
  first, *others = all_gather(value)
  for index, other in enumerate(others, 1):
    for key in sorted(other.keys() | first.keys()):
      if other.get(key) != first.get(key):
        raise UserError(
          f"the processes have to be given the same {what}: {key} is"
          f" {first.get(key)!r} on process 0 and {other.get(key)!r} on"
          f" process {index}"
        )


def broadcast(value):
  """The first process's value, which JSON can hold; that of others is lost."""
  return all_gather(value if is_primary() else None)[0]


def reached_preemption(number):
  """Whether all processes stop now, for SIGTERM has been sent to one of them.

  Args:
    number: counts the calls, which all processes make alike; they agree on the
      number to stop at.
  """
  if single_process():
    return False
  return multihost_utils.reached_preemption_sync_point(number)


@contextlib.contextmanager
def sync_errors():
  """Raises on every process the UserError that one of them raises inside.

  What is inside must not wait for other processes.
  """
  own = None
  try:
    yield
  except UserError as e:
    own = e
  found = all_gather(own and str(own))
  if own:
    raise own
  for index, sentence in enumerate(found):
    if sentence:
      raise UserError(f"process {index}: {sentence}")


def replicated(x):
  """An array that may lie on several hosts, whole on each of them."""
  if not isinstance(x, jax.Array):
    return x
  if x.is_fully_addressable or x.is_fully_replicated:
    return x
  return jax.jit(_as_it_is, out_shardings=NamedSharding(x.sharding.mesh, P()))(
    x
  )


def _as_it_is(x):
  return x


@contextlib.contextmanager
def exit_on_error():
  """Ends a process that fails alone at once, so that the others notice.

  Else it would wait for them while they wait for it. A UserError and an
  orderly stop are everybody's.
  """
  try:
    yield
  except (UserError, KeyboardInterrupt):
    raise
  except Exception:
    if single_process():
      raise
    _leave(1, traceback.format_exc())
