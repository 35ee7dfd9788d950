"""Stage 1 as a masked autoencoder (MAE; He et al., 2022), not in the paper.

The student predicts the pixels of hidden patches from the visible ones. Its EMA
teacher is what is evaluated and fine-tuned, as in view prediction.
"""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_ssl_jax import models
from vit_ssl_jax.models import locality
from vit_ssl_jax.models.mae import PixelDecoder, random_masking
from vit_ssl_jax.parallel import mesh as meshes
from vit_ssl_jax.train import gradients, losses, teacher


@flax.struct.dataclass
class MaeState:
  """The state of training."""

  step: jax.Array  # () int32, steps done
  student: dict  # {"backbone": …, "head": the decoder's}, float32
  teacher: dict  # the student's exponential moving average
  opt_state: optax.OptState


def make_setup(config, steps_per_epoch, mesh=None):
  """The `teacher.Setup` of a config."""
  model = models.from_config(config, num_classes=0)
  decoder = PixelDecoder(
    patches=(config.views.global_size // model.patch_size) ** 2,
    pixels=3 * model.patch_size**2,
    num_heads=model.num_heads,
    mlp_ratio=model.mlp_ratio,
    dtype=model.dtype,
  )
  schedules = teacher.make_schedules(config, steps_per_epoch)
  optimizer = teacher.make_optimizer(config, schedules)
  return teacher.Setup(config, model, decoder, schedules, optimizer, mesh)


def init_state(setup, key):
  """The state of step 0."""
  class_token = jnp.zeros((1, 1, setup.model.num_features))
  no_patches = jnp.zeros((1, 0), jnp.int32)
  return teacher.init_state(setup, key, (class_token, no_patches), MaeState)


def update(setup, state, views, _, key):
  """The step after augmentation (He et al., 2022, section 3).

  `views` are the global ones, (B, 2, S, S, 3), normalised; no drop path.
  """
  gather = meshes.all_gather_params(setup.mesh)
  visible = random_masking(key, views.shape[:2], setup.head.patches)

  def loss_fn(student, batch):
    student = gather(student)
    images, visible = (x.reshape(-1, *x.shape[2:]) for x in batch)
    tokens = setup.model.apply(
      {"params": student["backbone"]}, images, visible, method="encode_visible"
    )
    predicted = setup.head.apply({"params": student["head"]}, tokens, visible)
    pixels = locality.cut(images, setup.model.patch_size)
    pixels = pixels.reshape(predicted.shape)
    return losses.reconstruction(predicted, pixels, visible), {}

  (loss, _), grads = gradients.averaged(loss_fn, setup.config.accumulate_steps)(
    state.student, (views, visible)
  )
  values = {"loss": loss, **setup.scheduled(state.step)}
  return teacher.advance(setup, state, grads, values)


def make_stage(config, dataset, steps_per_epoch, mesh):
  """The stage as the loop runs it."""
  setup = make_setup(config, steps_per_epoch, mesh)
  return teacher.make_stage(setup, dataset, init_state, update)
