"""Checkpoints of the golden models, laid out as the paper's scripts save them.

What the scripts keep beside the weights is made by PyTorch itself, as there.
"""

import argparse
import json

import numpy as np

SIZES = ("image_size", "patch_size", "embed_dim", "depth", "depths")
SIZES += ("num_heads", "mlp_ratio", "window_size", "depth_token_only")
SIZES += ("layer_scale_init", "num_classes")


def golden(folder, arch):
  """A golden model's arrays, weights by the paper's names, and sizes."""
  with np.load(folder / f"model_{arch}.npz") as file:
    arrays = {name: file[name] for name in file.files}
  state = {
    name.removeprefix("param/"): x
    for name, x in arrays.items()
    if name.startswith("param/")
  }
  config = json.loads(str(arrays["config"]))
  return arrays, state, {k: x for k, x in config.items() if k in SIZES}


def finetuned(torch, state):
  """What finetune.py writes to best.pth, of weights by name."""
  state = {name: torch.from_numpy(x.copy()) for name, x in state.items()}
  optimizer, scheduler = trained(torch, state)
  return {
    "model_state_dict": state,
    "epoch": 42,
    "optimizer_state_dict": optimizer.state_dict(),
    "scheduler": scheduler.state_dict(),
  }


def pretrained(torch, state):
  """What train_ssl.py writes to checkpoint.pth, of a backbone's weights.

  The student is in a DistributedDataParallel, and other than the teacher.
  """
  state = {
    f"backbone.{k}": torch.from_numpy(x.copy()) for k, x in state.items()
  }
  head = {
    "head.mlp.0.weight": torch.ones(2, 2),
    "head.last_layer.weight_v": torch.ones(2, 2),
  }
  student = {name: x + 1 for name, x in state.items()} | head
  optimizer, _ = trained(torch, state)
  return {
    "student": {f"module.{name}": x for name, x in student.items()},
    "teacher": state | head,
    "optimizer": optimizer.state_dict(),
    "epoch": 3,
    "args": argparse.Namespace(arch="vit", output_dir="/home/them/runs"),
    "view_pred_loss": {"center": torch.zeros(1, 16)},
    "fp16_scaler": {"scale": 65536.0, "_growth_tracker": 0},
  }


def trained(torch, state):
  """AdamW and a scheduler after a step on copies of weights."""
  copies = [
    torch.nn.Parameter(x.clone())
    for x in state.values()
    if x.is_floating_point()
  ]
  optimizer = torch.optim.AdamW(copies, lr=1e-3, weight_decay=0.05)
  scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
  sum(x.square().sum() for x in copies).backward()
  optimizer.step()
  scheduler.step()
  return optimizer, scheduler
