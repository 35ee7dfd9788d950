"""What a step's matrix products take, counted in its program."""

import math

from jax.extend import core


def products(jaxpr, times=1, path=""):
  """The matrix products of a program.

  A product of (M, K) and (K, N) has 2 · M · K · N floating-point operations,
  reads its operands and writes its result. What is scanned counts as often as
  it is done.

  Args:
    jaxpr: a program; see `jax.make_jaxpr`.
    times: how often all of it is done.
    path: names of what it is a part of.

  Yields:
    The operations, the bytes, and the path of names that JAX gave the product;
    in it stands "transpose" where it is of a backward pass.
  """
  for eqn in jaxpr.eqns:
    here = f"{path}/{eqn.source_info.name_stack}"
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      left, right, out = (x.aval for x in (*eqn.invars, *eqn.outvars))
      depth = math.prod(left.shape[axis] for axis in contracted)
      moved = sum(x.size * x.dtype.itemsize for x in (left, right, out))
      yield 2 * depth * out.size * times, moved * times, here
    inner = times
    if eqn.primitive.name == "scan":
      inner *= eqn.params["length"]
    for part in core.jaxprs_in_params(eqn.params):
      yield from products(part, inner, here)


def count_flops(jaxpr):
  """Floating-point operations of a program's matrix products."""
  return sum(flops for flops, _, _ in products(jaxpr))


def backward_turns(jaxpr, path=""):
  """How many turns a program's loops take in its backward pass, in all.

  A scan that is unrolled is no loop in the compiled program.
  """
  total = 0
  for eqn in jaxpr.eqns:
    here = f"{path}/{eqn.source_info.name_stack}"
    loop = eqn.primitive.name == "scan" and "transpose" in here
    if loop and eqn.params["unroll"] < eqn.params["length"]:
      total += eqn.params["length"]
    else:
      for part in core.jaxprs_in_params(eqn.params):
        total += backward_turns(part, here)
  return total
