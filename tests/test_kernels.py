"""Fast forms agree with the plain ones: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vit_ssl_jax.models import (
  kernels,
  matrix_attention,
  triton_attention,
  vector_attention,
)
from vit_ssl_jax.parallel import mesh as meshes

# (B, ..., N, heads, d), M: odd tokens, windows, one query, many queries.
SHAPES = {
  "tokens": ((3, 9, 2, 8), 9),
  "more than 128 views": ((130, 5, 1, 8), 5),
  "windows": ((2, 2, 4, 2, 8), 4),
  "one query": ((3, 1, 2, 4), 10),
  "many queries": ((2, 100, 1, 8), 7),
}


def normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def given(shape, M, dtype=jnp.float32):
  """q, k, v and the gradient of the output, from a seed of the shape's."""
  rng = np.random.default_rng(sum(shape))
  *batch, _, heads, d = shape
  q, k, v = (
    normal(rng, *shape),
    normal(rng, *batch, M, heads, d),
    normal(rng, *batch, M, heads, d),
  )
  return [x.astype(dtype) for x in (q, k, v)], normal(rng, *shape), rng


def value_and_gradients(function, g, arguments):
  """The output, and the gradients of all arguments where g is its own."""

  def loss(arguments):
    out = function(*arguments)
    return jnp.sum(out.astype(jnp.float32) * g), out

  return jax.jit(jax.grad(loss, has_aux=True))(arguments)


def assert_near(found, expected, tolerance):
  """Equal up to a share of the largest absolute value."""

  def check(a, b):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)

  jax.tree.map(check, found, expected)


def compare(shape, M, tolerance, bias=None, dtype=jnp.float32):
  arrays, g, rng = given(shape, M, dtype)
  arguments = [*arrays, *([normal(rng, *bias)] if bias else [])]
  scale = 0.37
  plain = functools.partial(kernels.attention, scale=scale, fast=False)
  kernel = functools.partial(vector_attention.attention, scale=scale)
  expected = value_and_gradients(plain, g, arguments)
  with pltpu.force_tpu_interpret_mode():
    found = value_and_gradients(kernel, g, arguments)
  assert_near(found, expected, tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_vector_attention(name):
  compare(*SHAPES[name], 1e-5)


@pytest.mark.parametrize(
  ("name", "bias"),
  [
    ("tokens", (1, 1, 9, 9)),
    ("windows", (1, 1, 2, 4, 4)),
    ("windows", (1, 2, 1, 4, 4)),
  ],
)
def test_vector_attention_with_a_bias(name, bias):
  compare(*SHAPES[name], 1e-5, bias)


def test_vector_attention_in_half_precision():
  # The plain form rounds the softmax, the kernel the output alone: 2^-8 twice.
  compare(*SHAPES["tokens"], 2**-7, dtype=jnp.bfloat16)


@pytest.mark.parametrize(
  ("shape", "dtype", "tolerance"),
  [
    # One query is left over; heads share lanes, of 128 and 64 channels.
    ((9, 17, 12, 16), jnp.float32, 1e-5),
    ((2, 65, 12, 16), jnp.float32, 1e-5),
    # A slot has more lanes than there are queries.
    ((1, 21, 3, 8), jnp.float32, 1e-5),
    ((3, 16, 3, 32), jnp.float32, 1e-5),
    ((1, 130, 1, 64), jnp.float32, 1e-5),
    # Both round the softmax and its gradient.
    ((2, 17, 2, 16), jnp.bfloat16, 2**-6),
  ],
)
def test_matrix_attention(shape, dtype, tolerance, monkeypatch):
  B, N, heads, d = shape
  if dtype == jnp.bfloat16:
    # As a TPU rounds what it multiplies; a CPU does not.
    dot = matrix_attention.dot

    def rounded(x, y, axes):
      x, y = (z.astype(dtype).astype(jnp.float32) for z in (x, y))
      return dot(x, y, axes)

    monkeypatch.setattr(matrix_attention, "dot", rounded)
  rng = np.random.default_rng(0)
  qkv = normal(rng, B, N, 3 * heads * d).astype(dtype)
  g = normal(rng, *shape)
  assert matrix_attention.fits(N, heads, heads * d)

  def plain(qkv):
    return kernels.self_attention(qkv, heads, scale=0.37, fast=False)

  def kernel(qkv):
    return matrix_attention.self_attention(qkv, heads, 0.37).reshape(shape)

  expected = value_and_gradients(plain, g, [qkv])
  with pltpu.force_tpu_interpret_mode():
    found = value_and_gradients(kernel, g, [qkv])
  assert_near(found, expected, tolerance)


def test_where_matrix_attention_applies(monkeypatch):
  monkeypatch.setattr(kernels, "platform", lambda: "tpu")
  monkeypatch.setattr(kernels, "divides", lambda batch: True)

  def applies(B, N, D, heads=12, dtype=jnp.bfloat16):
    return kernels.matrix_applies(jnp.zeros((B, N, 3 * D), dtype), heads)

  assert applies(512, 65, 192)
  assert applies(4, 65, 192)
  assert applies(1, 17, 192)
  assert not applies(512, 17, 192)  # lanes full of views are faster
  assert not applies(4, 65, 192, dtype=jnp.float32)
  assert not applies(4, 197, 192)
  assert not applies(4, 65, 288)  # heads of 24
  assert not applies(4, 130, 768)  # more than the chip's memory
  assert not applies(4, 5, 192)  # less than a tile
  assert not applies(0, 17, 192)
  windows = jnp.zeros((4, 4, 65, 576), jnp.bfloat16)
  assert not kernels.matrix_applies(windows, 12)
  monkeypatch.setattr(kernels, "mesh_size", lambda: 8)
  assert applies(256, 17, 192)


@pytest.mark.parametrize("name", ["tokens", "one query"])
def test_attention_for_cudnn_pads_sequences(name):
  """By XLA in cuDNN's place, which no CPU has."""
  shape, M = SHAPES[name]
  arrays, g, _ = given(shape, M)

  def padded(q, k, v):
    return kernels.cudnn_attention(q, k, v, 0.37, implementation="xla")

  plain = functools.partial(kernels.attention, scale=0.37, fast=False)
  found = value_and_gradients(padded, g, arrays)
  assert_near(found, value_and_gradients(plain, g, arrays), 1e-5)


@pytest.mark.parametrize(
  ("shape", "dtype", "tolerance"),
  [
    ((3, 65, 2, 16), jnp.float32, 1e-5),
    ((2, 17, 3, 32), jnp.float32, 1e-5),
    ((2, 16, 1, 16), jnp.float32, 1e-5),
    # It rounds the softmax and its gradient.
    ((2, 17, 2, 16), jnp.bfloat16, 2**-6),
  ],
)
def test_triton_attention(shape, dtype, tolerance):
  B, N, heads, d = shape
  rng = np.random.default_rng(0)
  qkv = normal(rng, B, N, 3, heads, d).astype(dtype)
  bias, g = normal(rng, 3, heads, d), normal(rng, *shape)

  def plain(qkv, bias):
    qkv = qkv.astype(jnp.float32) + bias[None, None]
    q, k, v = (qkv[:, :, i] for i in range(3))
    return kernels.attention(q, k, v, scale=0.37, fast=False)

  def kernel(qkv, bias):
    bias = bias.astype(dtype)
    return triton_attention.self_attention(qkv, bias, 0.37, True)

  expected = value_and_gradients(plain, g, [qkv, bias])
  assert_near(value_and_gradients(kernel, g, [qkv, bias]), expected, tolerance)


def test_where_triton_attention_applies(monkeypatch):
  monkeypatch.setattr(kernels, "platform", lambda: "gpu")
  monkeypatch.setattr(kernels, "divides", lambda batch: True)

  def applies(*shape, heads=12, dtype=jnp.bfloat16):
    return kernels.triton_applies(jnp.zeros(shape, dtype), heads)

  assert applies(512, 65, 576)
  assert not applies(512, 65, 576, dtype=jnp.float32)
  assert not applies(512, 197, 576)
  assert not applies(512, 65, 576, heads=4)
  assert not applies(512, 4, 16, 288, heads=3)  # windows


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-7)]
)
@pytest.mark.parametrize("given", [1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 17, 24), (9, 3, 3, 16)])
def test_add_norm_on_a_gpu(shape, given, dtype, tolerance):
  """x alone, and with y and mask; x is float32 too where the norm is not."""
  rng = np.random.default_rng(0)
  x, y = normal(rng, *shape), normal(rng, *shape).astype(dtype)
  mask = jnp.arange(shape[0]) % 3 * 0.7
  arrays = [x, y, mask][:given] + [None] * (3 - given)
  scale, bias = normal(rng, shape[-1]), normal(rng, shape[-1])
  g = normal(rng, 2, *shape)

  def stacked(add_norm):
    def function(scale, bias, x, y):
      outs = add_norm(x, y, arrays[2], scale, bias)
      assert [out.dtype for out in outs] == [x.dtype, dtype]
      return jnp.stack([out.astype(jnp.float32) for out in outs])

    return function

  plain = functools.partial(
    kernels.add_norm, epsilon=1e-6, dtype=dtype, fast=False
  )
  kernel = functools.partial(kernels.norm_of_rows, 1e-6, dtype, interpret=True)
  arguments = [scale, bias, *arrays[:2]]
  expected = value_and_gradients(stacked(plain), g, arguments)
  found = value_and_gradients(stacked(kernel), g, arguments)
  assert_near(found, expected, tolerance)


def test_gpu_kernels_on_two_devices():
  """What all devices share has the gradient of all of them."""
  rng = np.random.default_rng(0)
  x, bias = normal(rng, 4, 17, 3, 2, 16), normal(rng, 3, 2, 16)
  mesh = meshes.make_mesh(1, 4)
  attention = functools.partial(
    triton_attention.self_attention, scale=1.0, interpret=True
  )
  norm = functools.partial(
    kernels.norm_of_rows, 1e-6, jnp.float32, interpret=True
  )

  def both(x, bias):
    y = kernels.on_each_device(attention, (x,), bias).reshape(4, 17, 32)
    scale, shift = bias[0].reshape(-1), bias[1].reshape(-1)
    for branch in ((None, None), (y, None), (y, jnp.arange(4.0))):
      x, y = kernels.on_each_device(norm, (y, *branch), scale, shift)
    return jnp.stack([x, y])

  g = normal(rng, 2, 4, 17, 32)
  expected = value_and_gradients(both, g, [x, bias])
  with jax.set_mesh(mesh):
    found = value_and_gradients(both, g, [x, bias])
  assert_near(found, expected, 1e-5)


@pytest.mark.parametrize("given", [1, 2, 3])
def test_gpu_kernels_are_lowered_by_triton(given):
  """No GPU is needed for it. CaiT's sums are float32, its norms are not."""
  x, y = jnp.zeros((4, 17, 96)), jnp.zeros((4, 17, 96), jnp.bfloat16)
  arrays = [x, y, jnp.ones(4)][:given] + [None] * (3 - given)
  bias = jnp.zeros((3, 2, 16), jnp.bfloat16)

  def loss(x, scale, bias):
    _, y = kernels.norm_of_rows(
      1e-6, jnp.bfloat16, x, *arrays[1:], scale, scale
    )
    qkv = y.reshape(4, 17, 3, 2, 16)
    y = triton_attention.self_attention(qkv, bias)
    return jnp.sum(jnp.square(y.astype(jnp.float32)))

  gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
  traced = gradients.trace(arrays[0], jnp.ones(96), bias)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  for name in ("norm", "attention"):
    assert f"{name}_forward_kernel" in text
    assert f"{name}_backward_kernel" in text


def test_where_the_norm_of_gpus_applies(monkeypatch):
  monkeypatch.setattr(kernels, "platform", lambda: "gpu")
  monkeypatch.setattr(kernels, "divides", lambda batch: True)
  x = jnp.zeros((4, 17, 192))
  assert kernels.norm_applies(x, jnp.bfloat16)
  assert not kernels.norm_applies(x, jnp.float32)
  assert not kernels.norm_applies(jnp.zeros((4, 17, 768)), jnp.bfloat16)


def test_a_batch_without_a_mesh(monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert kernels.divides(3)
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  assert not kernels.divides(4)


@pytest.mark.parametrize("name", ["tokens", "windows"])
def test_vector_self_attention(name):
  shape, _ = SHAPES[name]
  *batch, heads, d = shape
  rng = np.random.default_rng(0)
  qkv, g = normal(rng, *batch, 3 * heads * d), normal(rng, *shape)

  def plain(qkv):
    q, k, v = kernels.split_heads(qkv, heads)
    return kernels.attention(q, k, v, scale=0.3, fast=False)

  def kernel(qkv):
    qkv = kernels.in_heads(qkv, heads)
    return vector_attention.self_attention(qkv, scale=0.3)

  expected = value_and_gradients(plain, g, [qkv])
  with pltpu.force_tpu_interpret_mode():
    found = value_and_gradients(kernel, g, [qkv])
  assert_near(found, expected, 1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_vector_talking_heads(masked):
  (B, N, heads, d), _ = SHAPES["tokens"]
  rng = np.random.default_rng(0)
  qkv, g = normal(rng, B, N, 3 * heads * d), normal(rng, B, N, heads, d)
  mixing = [normal(rng, heads, heads) for _ in range(2)] + [normal(rng, heads)]
  bias = [normal(rng, 1, 1, N, N)] if masked else []

  def plain(qkv, before, after, shift, bias=None):
    none = jnp.zeros(heads)
    return kernels.talking_heads(
      qkv, heads, (before, none), (after, shift), bias, 0.3, fast=False
    )

  def kernel(qkv, before, after, shift, bias=None):
    mixing = before, after, shift
    qkv = kernels.in_heads(qkv, heads)
    return vector_attention.self_attention(qkv, bias, mixing, 0.3)

  arguments = [qkv, *mixing, *bias]
  expected = value_and_gradients(plain, g, arguments)
  with pltpu.force_tpu_interpret_mode():
    found = value_and_gradients(kernel, g, arguments)
  assert_near(found, expected, 1e-5)


@pytest.mark.parametrize("bias_shape", [None, (1, 2, 5, 7), (3, 1, 5, 7)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attention_on_a_cpu_is_the_plain_one(bias_shape, dtype):
  """Values and gradients, to rounding."""
  shapes = [(3, 5, 2, 4), (3, 7, 2, 4), (3, 7, 2, 4)]
  keys = jax.random.split(jax.random.key(0), 4)
  args = [
    jax.random.normal(k, s).astype(dtype)
    for k, s in zip(keys, shapes, strict=False)
  ]
  if bias_shape:
    args.append(jax.random.normal(keys[3], bias_shape))

  def result(attention):
    def loss(*args):
      return jnp.sum(jnp.sin(attention(*args).astype(jnp.float32)))

    number = tuple(range(len(args)))
    return jax.jit(jax.value_and_grad(loss, number))(*args)

  error = 1e-5 if dtype == jnp.float32 else 0.05
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one.astype(jnp.float32), other.astype(jnp.float32), error, error
    ),
    result(kernels.cpu_attention),
    result(kernels.plain_attention),
  )


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_dense(platform, monkeypatch):
  monkeypatch.setattr(kernels, "platform", lambda: platform)
  rng = np.random.default_rng(0)
  x, kernel, bias = normal(rng, 3, 5, 8), normal(rng, 8, 6), normal(rng, 6)
  g = normal(rng, 3, 5, 6)

  def plain(x, kernel, bias):
    return x @ kernel + bias[None, None]

  expected = value_and_gradients(plain, g, [x, kernel, bias])
  found = value_and_gradients(kernels.dense, g, [x, kernel, bias])
  assert_near(found, expected, 1e-6)


@pytest.mark.parametrize(
  ("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)]
)
def test_gelu(dtype, tolerance):
  x = jnp.linspace(-12, 12, 2001).astype(dtype)
  g = jnp.cos(x.astype(jnp.float32))
  plain = functools.partial(jax.nn.gelu, approximate=False)
  found = value_and_gradients(kernels.gelu, g, [x])
  expected = value_and_gradients(plain, g, [x.astype(jnp.float32)])
  assert found[1].dtype == dtype
  assert_near(found, expected, tolerance)
