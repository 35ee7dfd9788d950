"""What values of a config may be."""

import pathlib

import pytest

from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.recipes import finetune, keys, pretrain, schema

ROOT = pathlib.Path(__file__).parent.parent


def test_every_recipe_fits_and_every_key_is_used():
  used = set()
  for recipe in (pretrain, finetune):
    for arch in ("vit", "swin", "cait"):
      for dataset in registry.SETS:
        config = recipe.get_config(f"{arch},{dataset}")
        schema.check(config)
        used |= schema.flat(config).keys()
      used |= schema.flat(recipe.get_config(f"{arch},npz:x.npz")).keys()
  assert used == keys.KEYS.keys()


def page_of_keys():
  """docs/config.md."""
  modules = {"Pretraining": pretrain, "Fine-tuning": finetune}
  recipes = {k: x.get_config("vit,cifar10") for k, x in modules.items()}
  own = {k: x.get_config("vit,folder:/path") for k, x in modules.items()}
  lines = [
    "# Config keys",
    "",
    "Every key of the two recipes, with CIFAR-10's values for ViT; Swin and",
    "CaiT have sizes of their own. `--config.KEY=VALUE` changes one. This page",
    "is made by `PYTHONPATH=. python tests/test_schema.py`.",
  ]
  for title, config in recipes.items():
    lines += ["", f"## {title}", "", *table(schema.rows(config))]
  lines += [
    "",
    "## Custom data sets",
    "",
    "The keys that differ for `folder:` and `npz:` sets. Values `by a rule`",
    "follow from the images, the device and the budget; see",
    "[own_images.md](own_images.md).",
  ]
  for title, config in own.items():
    paper = schema.flat(recipes[title])
    differ = [
      row
      for row in schema.rows(config)
      if row[:2] not in paper.items() and row[0] != "dataset"
    ]
    lines += ["", f"### {title}", "", *table(differ)]
  return "\n".join(lines) + "\n"


def table(rows):
  """Lines of a Markdown table of keys."""
  yield "| key | value | possible | meaning |"
  yield "|---|---|---|---|"
  for name, value, possible, meaning in rows:
    shown = "by a rule" if value is None else f"`{value!r}`"
    yield f"| `{name}` | {shown} | {possible} | {meaning} |"


def test_the_page_of_keys_is_up_to_date():
  page = (ROOT / "docs" / "config.md").read_text()
  assert page == page_of_keys()


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("optim.learning_rate", -1e-3),
    ("optim.learning_rate", NAN),
    ("optim.weight_decay", -0.1),
    ("optim.weight_decay", INF),
    ("optim.clip_per_tensor", -1.0),
    ("optim.freeze_last_layer_epochs", -1),
    ("optim.min_learning_rate", -5.0),
    ("optim.min_learning_rate", 0.5),
    ("optim.warmup_epochs", 200),
    ("student_temperature", -0.1),
    ("student_temperature", 0.0),
    ("teacher.temperature", -0.07),
    ("teacher.momentum", 2.0),
    ("teacher.momentum", -1.0),
    ("teacher.temperature_warmup_epochs", -1),
    ("teacher.temperature_warmup_epochs", 201),
    ("head.out_dim", 1),
    ("head.hidden_dim", 0),
    ("head.bottleneck_dim", -1),
    ("views.color_jitter", (-0.4, 0.4, 0.2, 0.1)),
    ("views.color_jitter", (0.4, 0.4, 0.2)),
    ("views.local_size", 1_000_000),
    ("views.local_size", 18),
    ("views.global_scale", (0.9, 0.1)),
    ("model.embed_dim", 10_000_000),
    ("epochs", 10**20),
    ("epochs", 0),
    ("mean", (0.5, 0.5)),
    ("dataset", "folder:/a\nb"),
    ("on_nonfinite", "ignore"),
  ],
)
def test_nonsense_is_named(key, value):
  config = pretrain.get_config("vit,cifar10")
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=key):
    schema.check(config)


def test_a_hint_for_a_misspelt_choice():
  config = pretrain.get_config("vit,cifar10")
  config.dtype = "bfloat61"
  with pytest.raises(UserError, match="did you mean 'bfloat16'"):
    schema.check(config)


def test_old_names_are_refused_with_the_new_ones():
  for key, value, words in (
    ("fast_attention", True, "kernels='auto' or kernels='xla'"),
    ("objective", "patches", "objective='mae'"),
  ):
    config = pretrain.get_config("vit,cifar10")
    with pytest.raises(UserError, match=words):
      schema.change(config, {key: value})


if __name__ == "__main__":
  print(page_of_keys(), end="")
