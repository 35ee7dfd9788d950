"""Calls of the models from before `kernels.attention`."""

import flax.linen as nn
import jax.numpy as jnp

from vit_ssl_jax import kernels
from vit_ssl_jax.kernels import add_bias, dense, gelu, xla  # noqa: F401


def on_cpu():
  return kernels.platform() == "cpu"


def add(x, y, mask=None):
  if mask is not None:
    y = y * mask.reshape(-1, *[1] * (y.ndim - 1)).astype(y.dtype)
  return x + y


def add_norm(
  x, y, mask, scale, bias, epsilon=1e-6, dtype=jnp.float32, fast=True
):
  x = x if y is None else add(x, y, mask)
  norm = nn.LayerNorm(epsilon, dtype, parent=None)
  return x, norm.apply({"params": {"scale": scale, "bias": bias}}, x)


def attention(q, k, v, bias=None, scale=1.0, fast=True):
  form = None if fast else "xla"
  return kernels.attention(q, k, v, bias, scale=scale, implementation=form)


def self_attention(qkv, heads, bias=None, scale=1.0, fast=True, qkv_bias=None):
  qkv = qkv if qkv_bias is None else kernels.add_bias(qkv, qkv_bias)
  return attention(*split_heads(qkv, heads), bias, scale, fast)


def split_heads(qkv, heads):
  return [x.reshape(*x.shape[:-1], heads, -1) for x in jnp.split(qkv, 3, -1)]


def attention_weights(q, k, bias=None):
  return kernels.attention_weights(q, k, bias, scale=1.0)


def talking_heads(qkv, heads, before, after, bias=None, scale=1.0, fast=True):
  q, k, v = split_heads(qkv, heads)
  return kernels.attention(
    *(q, k, v, bias),
    scale=scale,
    mixing=(before, after),
    implementation=None if fast else "xla",
  )


def talking_heads_weights(q, k, before, bias=None):
  return kernels.attention_weights(q, k, bias, scale=1.0, mixing=(before, None))
