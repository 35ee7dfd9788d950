"""Kernels agree with XLA's forms: values and gradients."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import sharding
from jax.experimental.pallas import tpu as pltpu

from vit_ssl_jax import kernels, train
from vit_ssl_jax.kernels import (
  dispatch,
  gpu_attention,
  tpu_matrix,
  tpu_vector,
  xla,
)
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.train import timing

# (B, ..., N, heads, d), M: odd tokens, windows, one query, many queries.
SHAPES = {
  "tokens": ((3, 9, 2, 4), 9),
  "more than 128 views": ((130, 5, 1, 4), 5),
  "windows": ((2, 2, 4, 2, 4), 4),
  "one query": ((3, 1, 2, 4), 10),
  "many queries": ((2, 50, 1, 4), 7),
}
SCALE = 0.37


def normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def random_qkv(shape, M, dtype=jnp.float32):
  """q, k, v and the output's gradient."""
  rng = np.random.default_rng(sum(shape))
  *batch, _, heads, d = shape
  other = (*batch, M, heads, d)
  q, k, v = (normal(rng, *x).astype(dtype) for x in (shape, other, other))
  return [q, k, v], normal(rng, *shape), rng


def value_and_gradients(function, g, arguments):
  """The output, and the gradients of all arguments where g is its own."""

  def loss(arguments):
    out = function(*arguments)
    return jnp.sum(out.astype(jnp.float32) * g), out

  return jax.jit(jax.grad(loss, has_aux=True))(arguments)


def assert_near(actual, expected, tolerance):
  """Equal up to a share of the largest absolute value."""

  def check(a, b):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)

  jax.tree.map(check, actual, expected)


def compare(
  kernel, shape, M, tolerance, dtype=jnp.float32, bias=None, interpreted=None
):
  """Holds a kernel's attention against XLA's, interpreting kernels of TPUs."""
  arrays, g, rng = random_qkv(shape, M, dtype)
  arguments = [*arrays, *([normal(rng, *bias)] if bias else [])]

  def reference(q, k, v, bias=None):
    return xla.attention(q, k, v, bias, scale=SCALE)

  def attention(q, k, v, bias=None):
    return kernel(q, k, v, bias, None, scale=SCALE)

  expected = value_and_gradients(reference, g, arguments)
  with interpreted or pltpu.force_tpu_interpret_mode():
    actual = value_and_gradients(attention, g, arguments)
  assert_near(actual, expected, tolerance)


@pytest.mark.parametrize(
  ("name", "bias"),
  [
    *((name, None) for name in SHAPES),
    ("windows", (1, 1, 2, 4, 4)),
    ("windows", (1, 2, 1, 4, 4)),
  ],
)
def test_tpu_vector(name, bias):
  compare(tpu_vector.attention, *SHAPES[name], 1e-5, bias=bias)


def test_tpu_vector_in_half_precision():
  # XLA's form rounds the softmax, the kernel the output alone: 2^-8 twice.
  compare(tpu_vector.attention, *SHAPES["tokens"], 2**-7, jnp.bfloat16)


@pytest.mark.parametrize("masked", [False, True])
def test_tpu_vector_with_talking_heads(masked):
  shape, M = SHAPES["tokens"]
  arrays, g, rng = random_qkv(shape, M)
  heads = shape[-2]
  parts = [normal(rng, heads, heads) for _ in range(2)] + [normal(rng, heads)]
  bias = [normal(rng, 1, 1, M, M)] if masked else []

  def apply(attention, q, k, v, before, after, shift, bias=None):
    mixing = (before, jnp.zeros(heads)), (after, shift)
    return attention(q, k, v, bias, mixing, scale=SCALE)

  arguments = [*arrays, *parts, *bias]
  reference = functools.partial(apply, xla.attention)
  expected = value_and_gradients(reference, g, arguments)
  with pltpu.force_tpu_interpret_mode():
    kernel = functools.partial(apply, tpu_vector.attention)
    actual = value_and_gradients(kernel, g, arguments)
  assert_near(actual, expected, 1e-5)


@pytest.mark.parametrize(
  ("shape", "dtype", "tolerance"),
  [
    # One query is left over; heads share lanes, of 128 and 64 channels.
    ((3, 17, 12, 16), jnp.float32, 1e-5),
    # A slot has more lanes than there are queries.
    ((1, 21, 3, 8), jnp.float32, 1e-5),
    ((1, 66, 1, 64), jnp.float32, 1e-5),
    # Both round the softmax and its gradient.
    ((2, 17, 2, 16), jnp.bfloat16, 2**-6),
  ],
)
def test_tpu_matrix(shape, dtype, tolerance, monkeypatch):
  monkeypatch.setattr(tpu_matrix, "VIEWS", 2)
  if dtype == jnp.bfloat16:
    # As a TPU rounds what it multiplies; a CPU does not.
    dot = tpu_matrix.dot

    def rounded(x, y, axes):
      x, y = (z.astype(dtype).astype(jnp.float32) for z in (x, y))
      return dot(x, y, axes)

    monkeypatch.setattr(tpu_matrix, "dot", rounded)
  assert tpu_matrix.fits(shape[1], shape[2], shape[2] * shape[3])
  compare(tpu_matrix.attention, shape, shape[1], tolerance, dtype)


@pytest.mark.parametrize(
  ("shape", "dtype", "tolerance"),
  [
    ((3, 65, 2, 16), jnp.float32, 1e-5),
    ((2, 17, 3, 32), jnp.float32, 1e-5),
    # It rounds the softmax and its gradient.
    ((2, 17, 2, 16), jnp.bfloat16, 2**-6),
  ],
)
def test_gpu_attention(shape, dtype, tolerance):
  kernel = functools.partial(gpu_attention.attention, interpret=True)
  compare(
    *(kernel, shape, shape[1], tolerance, dtype),
    interpreted=contextlib.nullcontext(),
  )


@pytest.mark.parametrize("bias", [None, (1, 2, 9, 9), (3, 1, 9, 9)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cpu_attention(bias, dtype):
  tolerance = 1e-5 if dtype == jnp.float32 else 2**-5
  compare(xla.cpu_attention, *SHAPES["tokens"], tolerance, dtype, bias)


def test_kernels_split_a_batch_over_devices(monkeypatch):
  """On two devices, with an argument that both share."""
  kernel = dispatch.Kernel(
    "double", lambda arrays, shared: len(arrays[0]) == 2, lambda x, b: 2 * x + b
  )
  monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
  monkeypatch.setattr(dispatch, "policy", dispatch.Policy("unchecked"))
  x, b, g = jnp.arange(12.0).reshape(4, 3), jnp.ones((1, 3)), jnp.ones((4, 3))

  def call(x, b):
    return dispatch.dispatch({"gpu": [kernel]}, lambda x, b: x, (x,), (b,))

  _, out = value_and_gradients(call, g, [x, b])
  np.testing.assert_array_equal(out, x)  # without a mesh: XLA's form
  with jax.set_mesh(meshes.make_mesh(1, 4)):
    grads, out = value_and_gradients(call, g, [x, b])
  np.testing.assert_array_equal(out, 2 * x + b)
  np.testing.assert_array_equal(grads[1], [[4.0, 4.0, 4.0]])


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_gpu_attention_is_lowered_by_triton():
  """For an abstract GPU: none is needed."""
  gpu = sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
  auto = (sharding.AxisType.Auto,)
  mesh = sharding.AbstractMesh((1,), ("x",), auto, abstract_device=gpu)
  x = jnp.zeros((4, 17, 2, 16), jnp.bfloat16)

  def loss(x):
    y = gpu_attention.attention(x, x, x, None, None, scale=1.0)
    return jnp.sum(jnp.square(y.astype(jnp.float32)))

  with sharding.use_abstract_mesh(mesh):
    traced = jax.jit(jax.grad(loss)).trace(x)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "attention_forward_kernel" in text
  assert "attention_backward_kernel" in text


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_dense(platform, monkeypatch):
  monkeypatch.setattr(kernels, "platform", lambda: platform)
  rng = np.random.default_rng(0)
  x, kernel, bias = normal(rng, 3, 5, 8), normal(rng, 8, 6), normal(rng, 6)
  g = normal(rng, 3, 5, 6)

  def reference(x, kernel, bias):
    return x @ kernel + bias[None, None]

  expected = value_and_gradients(reference, g, [x, kernel, bias])
  actual = value_and_gradients(kernels.dense, g, [x, kernel, bias])
  assert_near(actual, expected, 1e-6)


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)]
)
def test_gelu(dtype, tolerance):
  x = jnp.linspace(-12, 12, 2001).astype(dtype)
  g = jnp.cos(x.astype(jnp.float32))
  reference = functools.partial(jax.nn.gelu, approximate=False)
  actual = value_and_gradients(kernels.gelu, g, [x])
  expected = value_and_gradients(reference, g, [x.astype(jnp.float32)])
  assert actual[1].dtype == dtype
  assert_near(actual, expected, tolerance)


def test_a_pretraining_step_agrees_with_xlas_forms(pretrain_tiny, monkeypatch):
  config = pretrain_tiny
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  config.objective, config.model.depth = "mae", 1
  make_stage = train.stage_of(config).make_stage
  batch = timing.random_batch(config, 10)
  results, programs = [], set()
  for form in ("auto", "xla"):
    monkeypatch.setattr(dispatch, "policy", dispatch.Policy(form))
    init, step = timing.stage(config, make_stage, 10)
    state = jax.jit(init)()
    traced = jax.jit(step).trace(state, batch)
    programs.add(str(traced.jaxpr))
    leaves = jax.tree.leaves(traced.lower().compile()(state, batch))
    results.append([x for x in leaves if x.dtype == jnp.float32])
  assert len(programs) == 2
  assert_near(*results, 1e-4)
