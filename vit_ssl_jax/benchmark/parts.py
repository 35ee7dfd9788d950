"""From which part of the code an instruction of a compiled program comes."""

import collections
import re

from vit_ssl_jax.benchmark import hlo

UNKNOWN = "not attributed"
COPIES = "copies that the compiler added"
# The first pattern that is found in an instruction's path of names decides.
NAMES = (
  ("threefry|random|_uniform|_normal|rng_bit", "random numbers"),
  ("/attn/(qkv|proj)|/attn/[qkv](/|$)", "attention's linear layers"),
  (r"/attn(/|$)|/attn\.", "attention"),
  (r"/mlp(/|$)", "MLP"),
  (r"/norm\d?(/|$)", "normalisation"),
  ("/patch_embed", "patch embedding"),
  ("/downsample_", "patch merging"),
  ("Head|/last_layer|/head(/|$)", "head"),
  ("/drop_path", "drop path"),
  ("dynamic(_update)?_slice$", "what scans keep"),
)
# Else the innermost file of the source that is named here does.
FILES = (
  ("/augment/", "augmentation"),
  ("/losses.py", "loss"),
  ("/optax/", "update of the weights"),
  ("/optimizers.py", "update of the weights"),
  ("/models/heads.py", "head"),
  ("/models/patches.py", "patch embedding"),
  ("/models/windows.py", "attention"),
  ("/models/attention.py", "attention"),
  ("/models/", "rest of the blocks"),
  ("/vit_ssl_jax/pretrain.py", "update of the weights"),
  ("/vit_ssl_jax/finetune.py", "update of the weights"),
)


def part(program, instruction):
  """The part of the code, and whether it is of the backward pass.

  Of a fusion it is the part of its result. What the compiler added itself, as
  copies into another layout, has no part unless what is fused in it has one.
  """
  found = part_of_one(instruction)
  if found != UNKNOWN:
    return found, is_backward(instruction)
  votes = collections.Counter(
    (part_of_one(x), is_backward(x)) for x in program.fused(instruction)
  )
  for (name, backward), _ in votes.most_common():
    if name != UNKNOWN:
      return name, backward
  return COPIES if instruction.opcode in hlo.MOVES else UNKNOWN, False


def is_backward(instruction):
  return "transpose(" in instruction.op_name


def part_of_one(instruction):
  """The part of an instruction, not looking into a fusion."""
  # An augmentation's own linear maps are no layers.
  in_augmentation = any("/augment/" in x for x in instruction.frames)
  for pattern, name in NAMES:
    if re.search(pattern, instruction.op_name):
      if in_augmentation and name != "random numbers":
        continue
      return name
  for frame in instruction.frames:
    for file, name in FILES:
      if file in frame:
        return name
  return UNKNOWN
