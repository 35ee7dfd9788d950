"""Properties of the models that golden numbers do not show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import positions

IMAGES = np.random.default_rng(1).standard_normal((4, 16, 16, 3), np.float32)
BLOCKS = {"vit": 2, "swin": 3, "cait": 3}


def build(arch, **sizes):
  return models.build(
    arch, **{"image_size": 16, "embed_dim": 8} | tiny.SIZES[arch] | sizes
  )


def random_params(model):
  """Parameters of order 1, so that each of them matters."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), models.shapes(model)
  )


@pytest.fixture(scope="module", params=tiny.SIZES)
def small(request):
  """A small model of each architecture, its parameters, and its name."""
  model = build(request.param, num_classes=5, drop_path_rate=0.5)
  return model, random_params(model), request.param


def test_shapes_at_every_image_size(small):
  model, params, _ = small

  @jax.jit
  def outputs(images):
    variables = {"params": params}
    logits, grid = model.apply(variables, images, method="logits_and_grid")
    features = model.apply(variables, images, method="features")
    return logits, grid, features

  for height, width in ((16, 16), (24, 20)):
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
  model = build(arch, drop_path_rate=0.5, **deeper)
  params = models.init(model, jax.random.key(0))
  keep = models.drop_path(model, jax.random.key(2), (4,))

  def loss(params, remat):
    features = model.clone(remat=remat).apply(
      {"params": params}, IMAGES, keep=keep, method="features"
    )
    return jnp.sum(jnp.sin(features))

  def residuals(remat):
    """Bytes that the forward pass leaves for the backward pass."""
    forward = functools.partial(jax.vjp, functools.partial(loss, remat=remat))
    arrays = jax.tree.leaves(jax.eval_shape(forward, params)[1])
    return sum(x.size * x.dtype.itemsize for x in arrays)

  assert residuals(True) < 0.5 * residuals(False)

  @functools.partial(jax.jit, static_argnums=1)
  def results(params, remat):
    weights = models.attention(model.clone(remat=remat), params, IMAGES)
    return weights, jax.grad(loss)(params, remat)

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    results(params, True),
    results(params, False),
  )


def test_attention_of_any_block_is_a_distribution(small):
  model, params, arch = small
  tokens = {
    "vit": [(17, 17)] * 2,
    "swin": [(64, 64)] * 2 + [(16, 16)],
    "cait": [(16, 16)] * 2 + [(1, 17)],
  }[arch]
  *every, last = attention(model, params, (*range(len(tokens)), -1))
  for weights, shape in zip(every, tokens, strict=True):
    assert weights.shape[2:] == shape
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  np.testing.assert_array_equal(last, every[-1])
  assert not np.allclose(every[0], every[1])
  with pytest.raises(UserError, match=f"no block {len(tokens)}: the model has"):
    attention(model, params, [len(tokens)])


def attention(model, params, blocks):
  """The attention of several blocks, compiled as one program."""

  def every(params):
    return [models.attention(model, params, IMAGES[:2], i) for i in blocks]

  return jax.jit(every)(params)


def test_attention_is_of_blocks_in_their_order():
  """Also where names sort otherwise: blocks_10 comes after blocks_2."""
  model = build("vit", depth=11)
  params = models.init(model, jax.random.key(0))
  flat = jax.tree.map(jnp.zeros_like, params["blocks_10"]["attn"]["qkv"])
  params["blocks_10"]["attn"]["qkv"] = flat
  last, other = attention(model, params, [-1, 2])
  np.testing.assert_allclose(last, 1 / 17, rtol=1e-6)
  assert np.ptp(other) > 0


def test_attention_is_computed_on_demand_alone(small):
  """The ordinary program has one softmax per block, and returns no weights."""
  model, params, arch = small

  def exponentials(function):
    return str(jax.make_jaxpr(function)(params)).count(" exp ")

  ordinary = exponentials(
    lambda p: model.apply({"params": p}, IMAGES, method="logits_and_grid")
  )
  with_maps = exponentials(lambda p: models.attention(model, p, IMAGES))
  scanned = {"vit": 2, "swin": 3, "cait": 2}  # CaiT's first blocks are one loop
  assert with_maps == 2 * ordinary == 2 * scanned[arch]
  variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
  assert variables.keys() == {"params"}


def test_attention_of_swin_stays_in_its_window():
  """Every patch sees those of its window, and over the edge nothing."""
  model = build("swin", window_size=4)
  params = models.init(model, jax.random.key(0))
  regular, shifted = (
    np.asarray(weights[0, 0] > 1e-9).reshape(8, 8, 8, 8)
    for weights in attention(model, params, [0, 1])
  )
  np.testing.assert_array_equal(np.argwhere(regular[1, 6]).min(0), [0, 4])
  np.testing.assert_array_equal(np.argwhere(regular[1, 6]).max(0), [3, 7])
  np.testing.assert_array_equal(np.argwhere(shifted[1, 4]).min(0), [0, 2])
  np.testing.assert_array_equal(np.argwhere(shifted[1, 4]).max(0), [1, 5])
  assert regular.sum() == 64 * 16
  assert shifted.sum() == 16**2 + 2 * 2 * 8**2 + 4 * 4**2


def test_drop_path_is_random_in_training_alone(small):
  model, params, _ = small

  @functools.partial(jax.jit, static_argnums=1)
  def logits(seed, train):
    rngs = {"drop_path": jax.random.key(seed)}
    return model.apply({"params": params}, IMAGES[:1], train, rngs=rngs)

  assert len({float(logits(seed, True)[0, 0]) for seed in range(6)}) > 1
  np.testing.assert_array_equal(logits(3, True), logits(3, True))
  np.testing.assert_array_equal(logits(0, False), logits(1, False))


def test_drop_path_keeps_the_mean():
  model = build("vit", drop_path_rate=0.25)  # of two blocks
  keep = np.asarray(models.drop_path(model, jax.random.key(0), (4000, 2)))
  assert keep.shape == (4000, 2, 2, 2)
  assert (keep[:, :, 0] == 1).all()
  assert set(np.unique(keep[:, :, 1])) == {0, np.float32(1 / 0.75)}
  assert abs((keep[:, :, 1] == 0).mean() - 0.25) < 0.03


@pytest.mark.parametrize("locality", ["", "lsa"])
def test_class_token_alone_as_among_all_tokens(locality):
  """Features and gradients of ViT, whose last block has all tokens or one."""
  model = build("vit", drop_path_rate=0.5, locality=locality)
  params = random_params(model)
  keep = models.drop_path(model, jax.random.key(2), (4,))

  def loss(params, method):
    x = model.apply({"params": params}, IMAGES, keep=keep, method=method)
    features = x[0] if method == "logits_and_grid" else x
    return jnp.sum(jnp.sin(features)), features

  @jax.jit
  def both(params):
    return [
      jax.grad(functools.partial(loss, method=method), has_aux=True)(params)
      for method in ("features", "logits_and_grid")
    ]

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5),
    *both(params),
  )


def test_dropped_branches_leave_a_block(small):
  """With all branches dropped no block's parameters matter."""
  model, params, _ = small
  keep = jnp.zeros((4, len(model.drop_path_rates), 2))
  apply = jax.jit(
    lambda params: model.apply(
      {"params": params}, IMAGES, keep=keep, method="features"
    )
  )
  other = {
    name: jax.tree.map(lambda x: x + 1, p)
    if name.startswith("blocks") and "token" not in name
    else p
    for name, p in params.items()
  }
  np.testing.assert_array_equal(apply(params), apply(other))


def test_parameters_are_left_as_they_are(small):
  """Also NumPy's, which could be changed in place."""
  model, params, _ = small
  before = jax.tree.map(np.copy, params)
  logits = model.apply({"params": params}, IMAGES)
  jax.tree.map(np.testing.assert_array_equal, params, before)
  compiled = jax.jit(model.apply)({"params": params}, IMAGES)
  np.testing.assert_allclose(logits, compiled, rtol=1e-4, atol=1e-4)


def test_half_precision_stays_near(small):
  """Logits, and gradients through drop path."""
  model, _, _ = small
  params = models.init(model, jax.random.key(0))
  keep = models.drop_path(model, jax.random.key(1), (4,))

  @functools.partial(jax.jit, static_argnums=1)
  def results(params, dtype):
    def loss(params):
      logits = model.clone(dtype=dtype).apply(
        {"params": params}, IMAGES, keep=keep
      )
      return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[:, 0]), logits

    return jax.grad(loss, has_aux=True)(params)

  exact, near = results(params, jnp.float32), results(params, jnp.bfloat16)
  for x in jax.tree.leaves(near):
    assert x.dtype == jnp.float32
  logits, gradient = (
    [np.concatenate([np.ravel(x) for x in jax.tree.leaves(r[i])])
     for r in (exact, near)]
    for i in (1, 0)
  )  # fmt: skip
  assert np.abs(logits[1] - logits[0]).max() < 0.03 * np.abs(logits[0]).max()
  error = np.linalg.norm(gradient[1] - gradient[0])
  assert error < 0.03 * np.linalg.norm(gradient[0])


def test_half_precision_keeps_what_layer_scale_makes_small():
  """At first each branch adds a hundred-thousandth of itself."""
  model = models.build(
    "cait", image_size=16, embed_dim=16, depth=6, layer_scale_init=1e-5
  )
  params = models.init(model, jax.random.key(0))
  images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))

  def variation(model):
    """Differences of features between images."""
    method = functools.partial(model.apply, method="features")
    x = np.asarray(jax.jit(method)({"params": params}, images))
    return x - x.mean(0)

  exact, near = variation(model), variation(model.clone(dtype=jnp.bfloat16))
  assert np.linalg.norm(near - exact) < 0.1 * np.linalg.norm(exact)


def test_images_that_patches_do_not_divide(small):
  model, params, _ = small
  with pytest.raises(UserError, match="images of 15 x 16 pixels cannot be cut"):
    model.apply({"params": params}, jnp.ones((1, 15, 16, 3)))


def test_resizing_positions_keeps_what_it_must():
  same = jax.random.normal(jax.random.key(0), (1, 16, 3))
  resized = positions.resize(same, (4, 4), (4, 4))
  np.testing.assert_array_equal(resized, same)
  constant = jnp.ones((1, 16, 3))
  for grid in ((2, 2), (7, 3)):
    resized = positions.resize(constant, (4, 4), grid)
    assert resized.shape == (1, grid[0] * grid[1], 3)
    np.testing.assert_allclose(resized, 1, rtol=1e-5)


def test_head_outputs_are_cosines():
  head = models.ProjectionHead(32, 16, 8)
  x = jax.random.normal(jax.random.key(0), (5, 4))
  params = head.init(jax.random.key(1), x)["params"]
  outputs = head.apply({"params": params}, x)
  assert outputs.shape == (5, 32)
  assert np.abs(outputs).max() <= 1 + 1e-6
  larger = params | {
    "last_layer": {"kernel": 7 * params["last_layer"]["kernel"]}
  }
  np.testing.assert_allclose(
    head.apply({"params": larger}, x), outputs, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize(
  ("sizes", "words"),
  [
    ({"name": "resnet"}, "unknown architecture 'resnet'"),
    ({"patch": 4}, "did you mean 'patch_size'"),
    ({"image_size": 30}, "model.image_size=30 is not a multiple"),
    ({"image_size": 2}, "model.image_size=2 is not a multiple"),
    ({"num_heads": 5}, "5 heads do not divide a width of 192"),
    ({"depth": 0}, "model.depth=0 must be a whole number of"),
    ({"name": "swin", "image_size": 36}, r"18 patches a side \(model.patch_s"),
    ({"name": "swin", "window_size": 17}, "window_size=17 must be at most 16"),
    ({"name": "swin", "num_heads": 3}, "num_heads=3 must be whole numbers"),
    ({"name": "swin", "depths": (2, 6.0, 4)}, r"depths=\(2, 6.0, 4\) must be"),
    ({"name": "swin", "num_heads": (3, 5, 12)}, "5 heads do not divide a wid"),
    ({"name": "swin", "depths": (2, 2)}, "must have one number per stage"),
    ({"locality": "lsa+spt"}, "'spt\\+lsa'"),
  ],
)
def test_sizes_that_do_not_fit(sizes, words):
  with pytest.raises(UserError, match=words):
    models.build(**{"name": "vit"} | sizes)
