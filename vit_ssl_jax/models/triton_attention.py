"""Self-attention of short sequences on GPUs, as a Pallas kernel for Triton.

cuDNN's kernels are made for long sequences: on an H200 they took 28 of the 53
ms of ViT's pretraining step, for 65 and 17 tokens and heads of 16. Here one
program has all scores of a head of an image in its registers, and what is kept
for the backward pass is the queries, keys and values alone. It adds their bias,
for XLA would read all their gradients again to add up the bias' gradient.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

LONGEST = 128  # tokens, whose scores fit into registers
WIDTHS = (16, 32)  # of a head; others were not tried
HIDDEN = -1e30  # the score of a token that is padding


def fits(N, d):
  """Whether the kernel takes N tokens and heads of width d."""
  return N <= LONGEST and d in WIDTHS


def padded(N):
  """The size of a block of N tokens: a power of 2, as Triton needs it."""
  return max(16, pl.next_power_of_2(N))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def self_attention(qkv, bias, scale=1.0, interpret=False):
  """As `kernels.self_attention`, without a bias of scores.

  Args:
    qkv: (B, N, 3, H, d) that `fits`.
    bias: (3, H, d) that is added to it.
    scale: a number.
    interpret: whether the kernel is interpreted, on any device.

  Returns:
    (B, N, H, d).
  """
  B, N, _, H, d = qkv.shape
  out = jax.ShapeDtypeStruct((B, N, H, d), qkv.dtype)
  return call(forward_kernel, scale, interpret, out, qkv, bias)


def backward(scale, interpret, kept, g):
  qkv, bias = kept
  sums = jax.ShapeDtypeStruct((len(qkv), *bias.shape), jnp.float32)
  outs = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), sums
  grads, sums = call(backward_kernel, scale, interpret, outs, qkv, bias, g)
  return grads, jnp.sum(sums, 0).astype(bias.dtype)


self_attention.defvjp(
  lambda *given: (self_attention(*given), given[:2]), backward
)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def call(kernel, scale, interpret, out, qkv, bias, *rest):
  """Runs a kernel for each image and head; traced once for equal shapes."""
  B, N, _, H, d = qkv.shape
  products = 5 if rest else 2
  arrays = (qkv, *rest, *jax.tree.leaves(out))
  return pl.pallas_call(
    functools.partial(kernel, scale),
    out_shape=out,
    grid=(B, H),
    name=f"attention_{kernel.__name__}",
    interpret=interpret,
    compiler_params=triton.CompilerParams(
      num_warps=max(1, padded(N) // 32), num_stages=1
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * B * H * N * N * d,
      transcendentals=B * H * N * N,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
    ),
  )(qkv, bias, *rest)


def head_of(ref, N, *part):
  """All tokens of this program's image and head, and which of them exist."""
  b, h = pl.program_id(0), pl.program_id(1)
  # Indices that are no constants: the block is longer than the array.
  tokens, part = pl.ds(b * 0, padded(N)), [b * 0 + i for i in part]
  exists = jnp.arange(padded(N))[:, None] < N
  shape = (padded(N), ref.shape[-1])
  return ref.at[b, tokens, *part, h, :], jnp.broadcast_to(exists, shape)


def load(ref, N, *part):
  at, exists = head_of(ref, N, *part)
  return triton.load(at, mask=exists, other=0.0)


def load_all(qkv, bias, N):
  """The queries, keys and values of this program's image and head."""
  h = pl.program_id(1)
  biases = (triton.load(bias.at[h * 0 + i, h, :]) for i in range(3))
  return [load(qkv, N, i) + x[None] for i, x in enumerate(biases)]


def store(ref, value, N, *part):
  at, exists = head_of(ref, N, *part)
  triton.store(at, value.astype(ref.dtype), mask=exists)


def softmax(q, k, scale, N):
  """softmax(scale q kᵀ) float32, 0 where a token is padding."""
  scores = scale * triton.dot(q, k, trans_b=True)
  exists = jnp.arange(len(k))[None, :] < N
  scores = jnp.where(exists, scores, HIDDEN)
  e = jnp.exp(scores - jnp.max(scores, 1, keepdims=True))
  return e / jnp.sum(e, 1, keepdims=True)


def forward_kernel(scale, qkv, bias, out):
  """softmax(scale q kᵀ) v."""
  N = qkv.shape[1]
  q, k, v = load_all(qkv, bias, N)
  weights = softmax(q, k, scale, N)
  store(out, triton.dot(weights.astype(v.dtype), v), N)


def backward_kernel(scale, qkv, bias, g, grads, sums):
  """The gradients of q, k and v, and their sums over tokens."""
  N = qkv.shape[1]
  q, k, v = load_all(qkv, bias, N)
  g = load(g, N)
  weights = softmax(q, k, scale, N)
  b, h = pl.program_id(0), pl.program_id(1)

  def put(i, value):
    store(grads, value, N, i)
    triton.store(sums.at[b, h * 0 + i, h, :], jnp.sum(value, 0))

  put(2, triton.dot(weights.astype(g.dtype), g, trans_a=True))
  dweights = triton.dot(g, v, trans_b=True)
  along = jnp.sum(weights * dweights, 1, keepdims=True)
  dscores = (scale * weights * (dweights - along)).astype(q.dtype)
  put(0, triton.dot(dscores, k))
  put(1, triton.dot(dscores, q, trans_a=True))
