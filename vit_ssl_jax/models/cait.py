"""CaiT (Touvron et al., 2021, "Going deeper with Image Transformers")."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_ssl_jax.models import layers
from vit_ssl_jax.models.attention import (
  Attention,
  attend,
  attention_map,
  diagonal_mask,
  firsts,
  join,
  over_views,
  query_scale,
  split,
  swap,
)
from vit_ssl_jax.models.backbone import Backbone


class CaiT(Backbone):
  """Self-attention among patches, then class attention, with LayerScale.

  For small views the paper's code cuts the position embeddings off; here they
  are resized, as the paper's text has it (section 3.1).

  Its features are the class token's. All blocks of patches have the same drop
  path rate, the class-attention blocks have none and an MLP ratio of 4. In
  attention maps of the first `depth` blocks tokens are the patches, row by
  row, and what is returned is the softmax, before heads are mixed again; in
  those of the class-attention blocks there is one row, the class token's, and
  it comes first in the columns.

  Attributes:
    depth: number of blocks among patches.
    depth_token_only: number of class-attention blocks.
    num_heads: attention heads a block.
    layer_scale_init: what each channel of a branch is multiplied by at first.
  """

  depth: int = 24
  depth_token_only: int = 2
  num_heads: int = 4
  layer_scale_init: float = 1e-5

  @property
  def num_features(self):
    return self.embed_dim

  @property
  def num_blocks(self):
    return self.depth + self.depth_token_only

  @property
  def drop_path_rates(self):
    return np.full(self.depth, self.drop_path_rate)

  def check(self):
    super().check()
    self.check_heads(self.embed_dim, self.num_heads)

  @nn.compact
  def encode(self, groups, masks, return_attention=False, whole=True):
    """As in `Backbone`."""
    D = self.embed_dim
    init = nn.initializers.normal(0.02)
    token = self.param("cls_token", init, (1, 1, D))
    positions = self.param("pos_embed", init, (1, self.side**2, D))
    tokens = list(self.embed(groups, positions, init))
    sizes = tuple(x.shape[1:3] for x in tokens)
    views = tuple(N for V, N in sizes for _ in range(V))
    B = len(tokens[0])
    options = (self.num_heads, sizes, self.has("lsa"))
    blocks = layers.scan(
      layers.Block, self.depth, masks is not None, self.remat
    )(
      functools.partial(TalkingHeadsAttention, *options, self.dtype),
      self.mlp_ratio,
      views,
      self.layer_scale_init,
      self.dtype,
      name="blocks",
    )
    # In half precision x + 1e-5 y would be x: LayerScale needs float32 sums.
    x = join(tokens).astype(jnp.float32)
    x, among_patches = blocks(x, masks, return_attention)
    token = jnp.broadcast_to(token, (B, len(views), D))
    blocks = layers.scan(ClassBlock, self.depth_token_only, False, self.remat)(
      *options, self.layer_scale_init, self.dtype, name="blocks_token_only"
    )
    token, of_class = blocks(token, x, return_attention)
    features = layers.LayerNorm(name="norm")(token)
    grids = [
      part.reshape(*images.shape[:2], *self.grid(images), D)
      for part, images in zip(split(x, sizes), groups, strict=True)
    ]
    attentions = [*among_patches, *of_class] if return_attention else None
    return features, grids, attentions


class TalkingHeadsAttention(Attention):
  """Self-attention whose heads are mixed before and after the softmax.

  (Shazeer et al., 2020.) Under locality self-attention the diagonal is masked
  after the first mixing.
  """

  @nn.compact
  def __call__(self, x, affine=None, return_attention=False):
    """As in `Attention`; what is returned is the softmax."""
    D = x.shape[-1]
    qkv = layers.Linear(3 * D, self.dtype, name="qkv")(x, affine)
    q, k, v = jnp.split(qkv, 3, -1)
    scale = query_scale(self, D, self.local)
    before = MixHeads(self.num_heads, jnp.float32, name="proj_l")
    after = MixHeads(self.num_heads, self.dtype, name="proj_w")

    def attend_in_view(q, k, v):
      q, k, v = swap(q * scale), swap(k), swap(v)
      scores = jnp.einsum(
        "bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32
      )
      scores = before(scores)
      if self.local:
        scores += diagonal_mask(q.shape[2])[None, None]
      weights = jax.nn.softmax(scores)
      mixed = after(weights.astype(self.dtype))
      out = jnp.einsum("bhnm,bhmd->bhnd", mixed, v)
      return swap(out), weights if return_attention else None

    out, shown = over_views(
      q, k, v, self.groups, self.num_heads, attend_in_view
    )
    return layers.Linear(D, self.dtype, name="proj")(out), shown


@jax.custom_vjp
def mix(x, kernel):
  """(B, H, N, M) and (H, G) -> (B, G, N, M), float32.

  Written as sums over the few heads: as a matrix product it would have x
  transposed, with the heads last, and back.
  """
  return sum(
    x[:, h, None].astype(jnp.float32) * weights[None, :, None, None]
    for h, weights in enumerate(kernel)
  )


def mix_backward(kept, g):
  x, kernel = kept
  dx = mix(g, kernel.T).astype(x.dtype)
  rows, g = x.reshape(*x.shape[:2], -1), g.reshape(*g.shape[:2], -1)
  dkernel = jnp.einsum("bhx,bgx->bhg", rows.astype(jnp.float32), g)
  return dx, jnp.sum(dkernel, 0)


mix.defvjp(lambda x, kernel: (mix(x, kernel), (x, kernel)), mix_backward)


class MixHeads(nn.Module):
  """A linear map over the heads (B, heads, N, M)."""

  num_heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    """(B, heads, N, M) -> (B, heads, N, M)."""
    init = nn.initializers.normal(0.02)
    shape = (self.num_heads, self.num_heads)
    kernel = self.param("kernel", init, shape)
    bias = self.param("bias", nn.initializers.zeros, shape[:1])
    y = mix(x, kernel) + bias[None, :, None, None]
    return y.astype(self.dtype)


class ClassBlock(nn.Module):
  """The class token looks at the patches; one step of a scan.

  Attributes:
    num_heads: attention heads.
    groups: how the patches' tokens are made up: (V, N) for V views of N.
    local: locality self-attention (Lee et al., 2021).
    layer_scale_init: as in `Block`.
    dtype: type of the arithmetic.
  """

  num_heads: int
  groups: tuple[tuple[int, int], ...]
  local: bool
  layer_scale_init: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, token, x, return_attention=False):
    """Class tokens (B, V, D), patches' tokens (B, T, D).

    Returns:
      Class tokens (B, V, D); the first group's attention, or None.
    """

    def scaled(y, index):
      init = self.layer_scale_init
      return y * layers.layer_scale(self, index, init, y) if init else y

    first = split(token, [(V, 1) for V, _ in self.groups])
    rest = split(x, self.groups)
    both = join(
      [jnp.concatenate(pair, 2) for pair in zip(first, rest, strict=True)]
    )
    groups = tuple((V, 1 + N) for V, N in self.groups)
    y, affine = layers.LayerNorm(self.dtype, apart=True, name="norm1")(both)
    attend_to = ClassAttention(
      self.num_heads, groups, self.local, self.dtype, name="attn"
    )
    y, attention = attend_to(y, affine, return_attention)
    token = token + scaled(y, 0)
    y, affine = layers.LayerNorm(self.dtype, apart=True, name="norm2")(token)
    y = layers.Mlp(4 * y.shape[-1], self.dtype, name="mlp")(y, affine)
    return token + scaled(y, 1), attention


class ClassAttention(Attention):
  """Attention of the class token alone (Touvron et al., 2021, section 3).

  The first token of each view is its class token. Locality self-attention
  learns the temperature, and masks nothing.
  """

  @nn.compact
  def __call__(self, x, affine=None, return_attention=False):
    """Tokens (B, T, D) of all views; the rest is as in `Attention`.

    Returns:
      (B, V, D); the first group's attention (B · V, heads, 1, N), or None.
    """
    D = x.shape[-1]
    first = x[:, firsts(self.groups)]
    q = layers.Linear(D, self.dtype, name="q")(first, affine)
    k = layers.Linear(D, self.dtype, name="k")(x, affine)
    v = layers.Linear(D, self.dtype, name="v")(x, affine)
    scale = query_scale(self, D, self.local)

    def attend_in_view(q, k, v):
      q *= scale
      shown = attention_map(q, k, None) if return_attention else None
      return attend(q, k, v, None), shown

    out, shown = over_views(
      q, k, v, self.groups, self.num_heads, attend_in_view
    )
    return layers.Linear(D, self.dtype, name="proj")(out), shown
