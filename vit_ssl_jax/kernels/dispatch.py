"""Choice between a platform's kernels and XLA's form of an operation.

Kernels are chosen while a program is traced. On accelerators a kernel is used
only for calls that `verify` has checked, see `use`; the forms for CPUs are
plain XLA and need no check.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec as P


class Kernel(NamedTuple):
  """A kernel of an operation.

  Attributes:
    name: as it stands in logs and files.
    supports: (arrays, shared, **options) -> whether it takes these shapes, of
      one device's share of a batch.
    function: (*arrays, *shared, **options) -> an array, differentiable.
  """

  name: str
  supports: Callable
  function: Callable


class Call(NamedTuple):
  """A use of a kernel, by one device's shapes."""

  kernel: Kernel
  reference: Callable
  arrays: tuple
  shared: tuple
  options: dict

  @property
  def key(self):
    shapes = [
      f"{x.dtype}{list(x.shape)}"
      for x in jax.tree.leaves((self.arrays, self.shared))
    ]
    options = [f"{k}={x:g}" for k, x in self.options.items()]
    return " ".join([self.kernel.name, *shapes, *options])


class Policy(NamedTuple):
  implementation: str = "auto"
  checked: frozenset = frozenset()


policy = Policy()
recorded = None


def use(implementation, checked=()):
  """Sets which forms programs use that are traced from now on.

  Args:
    implementation: "auto" for kernels, on accelerators only for checked calls;
      "xla" for XLA's forms alone; "unchecked" for every kernel that supports
      the shapes, for programs that are compiled and not run.
    checked: keys of calls that `verify` has accepted.
  """
  global policy
  policy = Policy(implementation, frozenset(checked))


@contextlib.contextmanager
def recording():
  """Yields a dict that collects the calls that kernels support, by key."""
  global recorded
  recorded = {}
  try:
    yield recorded
  finally:
    recorded = None


def dispatch(kernels, reference, arrays, shared=(), **options):
  """Computes an operation by the first usable kernel, or by XLA's form.

  Args:
    kernels: dict of each platform's `Kernel`s in order of preference.
    reference: XLA's form.
    arrays: arrays whose first axis is the batch.
    shared: pytrees without a batch axis, or None.
    **options: numbers, static.
  """
  share = per_device(arrays)
  on_cpu = platform() == "cpu"
  if policy.implementation != "xla" and share is not None:
    for kernel in kernels.get(platform(), ()):
      if not kernel.supports(share, shared, **options):
        continue
      call = Call(kernel, reference, share, shapes(shared), options)
      if recorded is not None and not on_cpu:
        recorded[call.key] = call
      unchecked = on_cpu or policy.implementation == "unchecked"
      if unchecked or call.key in policy.checked:
        function = functools.partial(kernel.function, **options)
        return over_mesh(function, arrays, shared)
  return reference(*arrays, *shared, **options)


def platform():
  """The platform programs are traced for: "cpu", "gpu" or "tpu"."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def per_device(arrays):
  """Shapes of one device's share of a batch; None if it cannot be split.

  With several devices and no mesh in use (`jax.set_mesh`) a kernel could not
  tell how the batch is sharded.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty and jax.device_count() > 1 and platform() != "cpu":
    return None
  n = max(1, mesh.size)
  if platform() == "cpu":
    n = 1
  if len(arrays[0]) % n or not len(arrays[0]):
    return None
  return tuple(
    jax.ShapeDtypeStruct((len(x) // n, *x.shape[1:]), x.dtype) for x in arrays
  )


def over_mesh(function, arrays, shared):
  """Calls a kernel on each device's share of the batch."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1 or platform() == "cpu":
    return function(*arrays, *shared)
  batch = P(mesh.axis_names)
  return jax.shard_map(
    function,
    in_specs=(batch,) * len(arrays) + (P(),) * len(shared),
    out_specs=batch,
    check_vma=False,
  )(*arrays, *shared)
