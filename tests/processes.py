"""The command line in processes forked from one that has imported it."""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import resource
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).parent.parent
SECONDS = 200  # after which a process hangs
CACHE = pathlib.Path(tempfile.gettempdir(), "vit_ssl_jax_test_cache")


def fork_server():
  """A context of processes that have imported the program, not started JAX."""
  before = dict(os.environ)
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path.insert(0, str(ROOT))
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(
    ["vit_ssl_jax.train.pretrain", "vit_ssl_jax.train.finetune", "main"]
  )
  # It keeps this environment, and the tests do not.
  multiprocessing.forkserver.ensure_running()
  os.environ.clear()
  os.environ.update(before)
  return context


def child(arguments, code, pipe, environment, limits):
  """Runs code, by default the command line; prints to the pipe."""
  os.dup2(pipe.fileno(), 1)
  os.dup2(pipe.fileno(), 2)
  pipe.close()
  os.chdir(ROOT)
  cache = environment.pop("JAX_COMPILATION_CACHE_DIR", str(CACHE))
  for name, value in environment.items():
    os.environ.pop(name, None)
    if value is not None:
      os.environ[name] = value
  for kind, limit in limits.items():
    resource.setrlimit(kind, (limit, limit))
  sys.argv = sys.orig_argv = ["main", *arguments]
  import jax

  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  try:
    exec(code, {"__name__": "code"})
  finally:
    atexit._run_exitfuncs()  # as of a program; a child process runs none


class Run:
  """A process, and what it prints."""

  def __init__(
    self,
    context,
    arguments=(),
    code="from vit_ssl_jax import main; main.run()",
    environment=None,
    limits=None,
    devices=1,
  ):
    flags = os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0")
    flags += f" --xla_force_host_platform_device_count={devices}"
    reader, writer = context.Pipe(duplex=False)
    self.process = context.Process(
      target=child,
      args=(
        arguments,
        code,
        writer,
        {"XLA_FLAGS": flags} | (environment or {}),
        limits or {},
      ),
    )
    self.process.start()
    writer.close()
    self.printed = []
    self.thread = threading.Thread(target=self.listen, args=(reader,))
    self.thread.start()

  def listen(self, reader):
    with reader:
      while data := os.read(reader.fileno(), 1 << 16):
        self.printed.append(data)

  def alive(self):
    return self.process.is_alive()

  def kill(self):
    self.process.kill()
    self.process.join()

  def wait(self):
    """Its exit status, or "hang", and what it has printed."""
    self.process.join(SECONDS)
    code = "hang" if self.alive() else self.process.exitcode
    if self.alive():
      self.kill()
    self.thread.join()
    return code, b"".join(self.printed).decode(errors="replace")
