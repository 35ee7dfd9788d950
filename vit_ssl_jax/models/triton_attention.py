"""Self-attention of short sequences on GPUs, as a Pallas kernel for Triton.

cuDNN's kernels are made for long sequences: on an H200 they took 28 of the 53
ms of ViT's pretraining step, for 65 and 17 tokens and heads of 16. Here one
program has all scores of a head of an image in its registers, and what is kept
for the backward pass is the queries, keys and values alone.
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def self_attention(qkv, scale=1.0, interpret=False):
  """As `kernels.self_attention`, without a bias.

  Args:
    qkv: (B, N, 3, H, d) that `fits`.
    scale: a number.
    interpret: whether the kernel is interpreted, on any device.

  Returns:
    (B, N, H, d).
  """
  B, N, _, H, d = qkv.shape
  out = jax.ShapeDtypeStruct((B, N, H, d), qkv.dtype)
  return call(forward_kernel, scale, interpret, out, qkv)


def backward(scale, interpret, qkv, g):
  out = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
  return (call(backward_kernel, scale, interpret, out, qkv, g),)


self_attention.defvjp(
  lambda qkv, *rest: (self_attention(qkv, *rest), qkv), backward
)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def call(kernel, scale, interpret, out, qkv, *rest):
  """Runs a kernel for each image and head; traced once for equal shapes."""
  B, N, _, H, d = qkv.shape
  products = 5 if rest else 2
  arrays = (qkv, *rest, out)
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
  )(qkv, *rest)


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


def forward_kernel(scale, qkv, out):
  """softmax(scale q kᵀ) v."""
  N = qkv.shape[1]
  q, k, v = (load(qkv, N, i) for i in range(3))
  weights = softmax(q, k, scale, N)
  store(out, triton.dot(weights.astype(v.dtype), v), N)


def backward_kernel(scale, qkv, g, grads):
  """The gradients of q, k and v."""
  N = qkv.shape[1]
  q, k, v = (load(qkv, N, i) for i in range(3))
  g = load(g, N)
  weights = softmax(q, k, scale, N)
  store(grads, triton.dot(weights.astype(g.dtype), g, trans_a=True), N, 2)
  dweights = triton.dot(g, v, trans_b=True)
  along = jnp.sum(weights * dweights, 1, keepdims=True)
  dscores = (scale * weights * (dweights - along)).astype(q.dtype)
  store(grads, triton.dot(dscores, k), N, 0)
  store(grads, triton.dot(dscores, q, trans_a=True), N, 1)
