"""Choice between a platform's kernels and XLA's form, as a program is traced.

On accelerators a kernel is used only for calls that `verify` has accepted; the
forms for CPUs are plain XLA and need no check.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec as P


class Kernel(NamedTuple):
  """A kernel of an operation, with its name in logs and files."""

  name: str
  supports: Callable  # (arrays, shared, **options) -> bool, by their shapes
  function: Callable  # (*arrays, *shared, **options) -> array, differentiable


class Call(NamedTuple):
  """A use of a kernel on one device's shapes."""

  kernel: Kernel
  reference: Callable
  arrays: tuple
  shared: tuple
  options: dict

  @property
  def key(self):
    leaves = jax.tree.leaves((self.arrays, self.shared))
    shapes = [f"{x.dtype}{list(x.shape)}" for x in leaves]
    options = [f"{k}={x:g}" for k, x in self.options.items()]
    return " ".join([self.kernel.name, *shapes, *options])


class Policy(NamedTuple):
  implementation: str = "auto"
  accepted: frozenset = frozenset()


policy = Policy()
recorded = None


def use(implementation, accepted=()):
  """Sets the forms of all programs that are traced from now on.

  Args:
    implementation: "auto" for kernels, on accelerators only for accepted calls;
      "xla" for XLA's forms alone; "unchecked" for every kernel that supports
      the shapes, for programs that are compiled and not run.
    accepted: keys of calls.
  """
  global policy
  policy = Policy(implementation, frozenset(accepted))


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
    kernels: each platform's `Kernel`s in order of preference, a dict.
    reference: XLA's form.
    arrays: arrays whose first axis is the batch.
    shared: pytrees without a batch axis, or None.
    **options: static numbers.
  """
  candidates = kernels.get(platform(), ())
  if policy.implementation == "xla" or not (candidates and divides(arrays)):
    return reference(*arrays, *shared, **options)
  if platform() == "cpu":
    usable = [x for x in candidates if x.supports(arrays, shared, **options)]
    function = usable[0].function if usable else reference
    return function(*arrays, *shared, **options)
  share = tuple(shape_of(x, len(x) // mesh_size()) for x in arrays)
  shapes = jax.tree.map(lambda x: shape_of(x, len(x)), shared)
  for kernel in candidates:
    if kernel.supports(share, shared, **options):
      call = Call(kernel, reference, share, shapes, options)
      if recorded is not None:
        recorded[call.key] = call
      if policy.implementation == "unchecked" or call.key in policy.accepted:
        function = functools.partial(kernel.function, **options)
        return over_mesh(function, arrays, shared)
  return reference(*arrays, *shared, **options)


def platform():
  """The platform that programs are traced for: "cpu", "gpu" or "tpu"."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def mesh_size():
  return max(1, jax.sharding.get_abstract_mesh().size)


def divides(arrays):
  """True if each device gets an equal share of the batch.

  Of several devices without a mesh in use (`jax.set_mesh`) that is not known.
  """
  known = mesh_size() > 1 or jax.device_count() == 1 or platform() == "cpu"
  return known and len(arrays[0]) % mesh_size() == 0


def shape_of(x, length):
  return jax.ShapeDtypeStruct((length, *x.shape[1:]), x.dtype)


def over_mesh(function, arrays, shared):
  """Calls a kernel on each device's share of the batch."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh_size() == 1:
    return function(*arrays, *shared)
  batch = P(mesh.axis_names)
  return jax.shard_map(
    function,
    in_specs=(batch,) * len(arrays) + (P(),) * len(shared),
    out_specs=batch,
    check_vma=False,
  )(*arrays, *shared)
