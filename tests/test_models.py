"""Properties of the models that golden numbers do not show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import layers, positions

SMALL = {
  "vit": {"patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2},
  "swin": {
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 3),
    "num_heads": (1, 2),
    "window_size": 4,
  },
  "cait": {
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 2,
    "depth_token_only": 1,
    "num_heads": 2,
    "layer_scale_init": 0.5,
  },
}


@pytest.fixture(scope="module", params=SMALL)
def small(request):
  """A small model of each architecture for 16 pixels, and its parameters."""
  model = models.build(
    request.param,
    image_size=16,
    num_classes=5,
    drop_path_rate=0.5,
    **SMALL[request.param],
  )
  return model, models.init(model, jax.random.key(0))


def test_shapes_at_every_image_size(small):
  model, params = small

  @jax.jit
  def outputs(images):
    variables = {"params": params}
    logits, grid = model.apply(variables, images, method="logits_and_grid")
    features = model.apply(variables, images, method="features")
    return logits, grid, features

  for height, width in ((16, 16), (8, 8), (24, 20)):
    logits, grid, features = outputs(jnp.ones((2, height, width, 3)))
    assert logits.shape == (2, 5)
    assert features.shape == (2, model.num_features)
    rows, columns = height // 4, width // 4  # 2 and a merging for Swin
    assert grid.shape == (2, rows, columns, model.num_features)


@pytest.mark.parametrize(
  ("arch", "deeper"),
  [("vit", {"depth": 6}), ("swin", {"depths": (6, 1)}), ("cait", {"depth": 6})],
)
def test_remat_keeps_less_and_changes_nothing(arch, deeper):
  options = SMALL[arch] | deeper
  model = models.build(arch, image_size=16, drop_path_rate=0.5, **options)
  params = models.init(model, jax.random.key(0))
  images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
  masks = models.drop_path(model, jax.random.key(2), (8,))

  def loss(params, remat):
    features = model.clone(remat=remat).apply(
      {"params": params}, images, masks=masks, method="features"
    )
    return jnp.sum(jnp.sin(features))

  def kept(remat):
    """Bytes that the forward pass leaves for the backward pass."""
    forward = functools.partial(jax.vjp, functools.partial(loss, remat=remat))
    residuals = jax.tree.leaves(jax.eval_shape(forward, params)[1])
    return sum(x.size * x.dtype.itemsize for x in residuals)

  assert kept(True) < 0.5 * kept(False)

  @functools.partial(jax.jit, static_argnums=1)
  def attention(params, remat):
    return model.clone(remat=remat).apply(
      {"params": params}, images, method="attention"
    )

  maps = [attention(params, remat) for remat in (True, False)]
  np.testing.assert_array_equal(*maps)
  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    gradient(params, True),
    gradient(params, False),
  )


def test_attention_of_any_block_is_a_distribution(small):
  model, params = small
  images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  name = type(model).__name__
  tokens = {
    "VisionTransformer": [(17, 17)] * 3,
    "SwinTransformer": [(64, 64)] * 2 + [(16, 16)] * 3,
    "CaiT": [(16, 16)] * 2 + [(1, 17)],
  }[name]
  *every, last = attentions(model, params, images, (*range(len(tokens)), -1))
  for weights, shape in zip(every, tokens, strict=True):
    assert weights.shape[2:] == shape
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  np.testing.assert_array_equal(last, every[-1])
  assert not np.allclose(every[0], every[1])
  beyond = len(tokens)
  with pytest.raises(UserError, match=f"no block {beyond}: the model has"):
    attentions(model, params, images, [beyond])


def attentions(model, params, images, blocks):
  """The attention of several blocks, compiled as one program."""

  def apply(params):
    apply = functools.partial(model.apply, {"params": params}, images)
    return [apply(block, method="attention") for block in blocks]

  return jax.jit(apply)(params)


def test_attention_of_swin_stays_in_its_window():
  """Every patch sees those of its window, and over the edge nothing."""
  model = models.build("swin", image_size=16, **SMALL["swin"])
  params = models.init(model, jax.random.key(0))
  images = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
  regular, shifted = (
    np.asarray(weights[0, 0] > 1e-9).reshape(8, 8, 8, 8)
    for weights in attentions(model, params, images, [0, 1])
  )
  np.testing.assert_array_equal(np.argwhere(regular[1, 6]).min(0), [0, 4])
  np.testing.assert_array_equal(np.argwhere(regular[1, 6]).max(0), [3, 7])
  np.testing.assert_array_equal(np.argwhere(shifted[1, 4]).min(0), [0, 2])
  np.testing.assert_array_equal(np.argwhere(shifted[1, 4]).max(0), [1, 5])
  assert regular.sum() == 64 * 16
  assert shifted.sum() == 16**2 + 2 * 2 * 8**2 + 4 * 4**2


def test_drop_path_is_random_in_training_alone(small):
  model, params = small
  images = jnp.ones((1, 16, 16, 3))

  @jax.jit
  def train(seed):
    return model.apply(
      {"params": params},
      images,
      train=True,
      rngs={"drop_path": jax.random.key(seed)},
    )

  outputs = [train(seed) for seed in range(6)]
  assert len({float(x[0, 0]) for x in outputs}) > 1
  np.testing.assert_array_equal(train(3), outputs[3])
  np.testing.assert_array_equal(
    model.apply({"params": params}, images),
    model.apply({"params": params}, images),
  )


def test_drop_path_keeps_the_mean():
  masks = layers.drop_path_masks(jax.random.key(0), [0.0, 0.25], (4000, 2))
  masks = np.asarray(masks)
  assert masks.shape == (4000, 2, 2, 2)
  assert (masks[:, :, 0] == 1).all()
  assert set(np.unique(masks[:, :, 1])) == {0, np.float32(1 / 0.75)}
  assert abs((masks[:, :, 1] == 0).mean() - 0.25) < 0.03


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("locality", ["", "lsa"])
def test_class_token_alone_as_among_all_tokens(locality, fast):
  """Features and gradients of ViT, whose last block has all tokens or one."""
  options = {"locality": locality, "drop_path_rate": 0.5, **SMALL["vit"]}
  model = models.build("vit", image_size=16, fast_attention=fast, **options)
  params = models.init(model, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda p: p + rng.normal(0, 0.1, p.shape).astype(p.dtype), params
  )
  images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
  masks = models.drop_path(model, jax.random.key(2), (4,))

  def loss(params, method):
    found = model.apply({"params": params}, images, masks=masks, method=method)
    features = found[0] if method == "logits_and_grid" else found
    return jnp.sum(jnp.sin(features)), features

  def both(method):
    function = functools.partial(loss, method=method)
    return jax.jit(jax.grad(function, has_aux=True))(params)

  found, expected = both("features"), both("logits_and_grid")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
    found,
    expected,
  )


def test_dropped_branches_leave_a_block(small):
  """With all branches dropped no block's parameters matter."""
  model, params = small
  images = jax.random.normal(jax.random.key(3), (2, 16, 16, 3))
  masks = jnp.zeros((2, len(model.drop_path_rates), 2))

  apply = jax.jit(
    lambda params: model.apply(
      {"params": params}, images, masks=masks, method="features"
    )
  )
  other = {
    name: jax.tree.map(lambda x: x + 1, p)
    if name.startswith("blocks") and "token" not in name
    else p
    for name, p in params.items()
  }
  np.testing.assert_array_equal(apply(params), apply(other))


@pytest.mark.parametrize("name", ["vit", "swin", "cait"])
def test_parameters_are_left_as_they_are(name):
  """Also where they are NumPy's, which can be changed in place."""
  model = models.build(name, num_classes=2, image_size=16, **SMALL[name])
  params = jax.device_get(models.init(model, jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda p: (p + rng.standard_normal(p.shape)).astype(p.dtype), params
  )
  before = jax.tree.map(np.copy, params)
  images = rng.standard_normal((2, 16, 16, 3)).astype(np.float32)
  once = model.apply({"params": params}, images)
  jax.tree.map(np.testing.assert_array_equal, params, before)
  jitted = jax.jit(lambda p: model.apply({"params": p}, images))(params)
  np.testing.assert_allclose(once, jitted, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_near(small):
  model, params = small
  half = model.clone(dtype=jnp.bfloat16)
  images = jax.random.normal(jax.random.key(2), (4, 16, 16, 3))
  exact = jax.jit(model.apply)({"params": params}, images)
  near = jax.jit(half.apply)({"params": params}, images)
  assert near.dtype == jnp.float32
  assert np.abs(near - exact).max() < 0.03 * np.abs(exact).max() + 0.01


@pytest.mark.parametrize("name", ["vit", "swin", "cait"])
def test_half_precision_trains(name):
  """Its derivatives can be traced, also where drop path meets them."""
  model = models.build(
    name, image_size=16, num_classes=3, drop_path_rate=0.1,
    dtype=jnp.bfloat16, **SMALL[name],
  )  # fmt: skip
  images = jax.random.normal(jax.random.key(2), (4, 16, 16, 3))

  def loss(params, model):
    logits = model.apply(
      {"params": params}, images, train=True,
      rngs={"drop_path": jax.random.key(1)},
    )  # fmt: skip
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0])

  shapes = models.shapes(model)
  found = jax.eval_shape(functools.partial(jax.grad(loss), model=model), shapes)
  assert found == shapes


def test_half_precision_keeps_what_layer_scale_makes_small():
  """At first each branch adds a hundred-thousandth of itself."""
  model = models.build(
    "cait", image_size=16, embed_dim=16, depth=6, layer_scale_init=1e-5
  )
  params = models.init(model, jax.random.key(0))
  images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))

  def varies(model):
    """Of the features what differs between images."""
    method = functools.partial(model.apply, method="features")
    x = np.asarray(jax.jit(method)({"params": params}, images))
    return x - x.mean(0)

  exact, near = varies(model), varies(model.clone(dtype=jnp.bfloat16))
  assert np.linalg.norm(near - exact) < 0.1 * np.linalg.norm(exact)


def test_images_that_patches_do_not_divide(small):
  model, params = small
  with pytest.raises(UserError, match="images of 15 x 16 pixels cannot be cut"):
    model.apply({"params": params}, jnp.ones((1, 15, 16, 3)))


def test_resizing_positions_keeps_what_it_must():
  same = jax.random.normal(jax.random.key(0), (1, 16, 3))
  ours = positions.resize(same, (4, 4), (4, 4))
  np.testing.assert_array_equal(ours, same)
  constant = jnp.ones((1, 16, 3))
  for grid in ((2, 2), (7, 3)):
    ours = positions.resize(constant, (4, 4), grid)
    assert ours.shape == (1, grid[0] * grid[1], 3)
    np.testing.assert_allclose(ours, 1, rtol=1e-5)


def test_head_outputs_are_cosines():
  head = models.ProjectionHead(32, 16, 8)
  x = jax.random.normal(jax.random.key(0), (5, 4))
  params = head.init(jax.random.key(1), x)["params"]
  outputs = head.apply({"params": params}, x)
  assert outputs.shape == (5, 32)
  assert np.abs(outputs).max() <= 1 + 1e-6
  larger = jax.tree.map(lambda p: p, params)
  larger["last_layer"] = {"kernel": 7 * params["last_layer"]["kernel"]}
  np.testing.assert_allclose(
    head.apply({"params": larger}, x), outputs, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize(
  ("sizes", "words"),
  [
    ({"name": "resnet"}, "unknown architecture 'resnet'"),
    ({"patch": 4}, "did you mean 'patch_size'"),
    ({"image_size": 30}, "model.image_size=30 is not a multiple"),
    ({"image_size": 2}, "smaller than a patch"),
    ({"num_heads": 5}, "5 heads do not divide a width of 192"),
  ],
)
def test_sizes_that_do_not_fit(sizes, words):
  with pytest.raises(UserError, match=words):
    models.build(**{"name": "vit"} | sizes)


@pytest.mark.parametrize(
  ("sizes", "words"),
  [
    (
      {"image_size": 36},
      r"makes 18 patches a side \(model.patch_size=2\); 3 stages need a mul",
    ),
    ({"window_size": 17}, "larger than the first stage of 16 patches a side"),
    ({"num_heads": 3}, "num_heads=3 has to be whole numbers, one for each"),
    ({"depths": (2, 6.0, 4)}, r"depths=\(2, 6.0, 4\) has to be whole numbers"),
    ({"num_heads": (3, 5, 12)}, "5 heads do not divide a width of 192"),
    ({"depths": (2, 2)}, "have to be equally long"),
    ({"locality": "lsa+spt"}, "'spt\\+lsa'"),
  ],
)
def test_sizes_that_do_not_fit_swin(sizes, words):
  with pytest.raises(UserError, match=words):
    models.build("swin", **sizes)
