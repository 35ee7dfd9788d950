"""Both stages from Python, by scikit-learn's conventions.

  from vit_ssl_jax import Classifier, ViewPrediction

  teacher = ViewPrediction("vit", budget="10m").fit(images)
  features = teacher.transform(images)
  model = Classifier("vit", init=teacher, budget="10m").fit(images, labels)
  model.predict_proba(more)

They run what `python -m main` runs on an `npz:` set of the same images, with
the same recipe, and so come to the same numbers. An interrupted `fit` has saved
a checkpoint, and the next one goes on from there.
"""

import json
import pathlib
import shutil
import tempfile

import ml_collections
import numpy as np
import scipy.special
import sklearn.base
import sklearn.utils.validation

from vit_ssl_jax import cli, export, files, models, recipes
from vit_ssl_jax.data import facts
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import model as networks
from vit_ssl_jax.recipes import common, custom, schema
from vit_ssl_jax.run import checkpoints, metrics, workdir as workdirs
from vit_ssl_jax.train import budget, finetune, pretrain

NAME = "npz:in memory"  # what a run calls its images
BATCH = 512  # images at a time


class Estimator(sklearn.base.BaseEstimator):
  """What both stages share.

  Attributes, after `fit`:
    config_: every key of the run, nested dicts.
    result_: what result.json holds.
    history_: the lines of metrics.jsonl.
  """

  init = None  # what training begins from

  def __init__(
    self,
    arch="vit",
    *,
    image_size=None,
    budget="",
    workdir=None,
    seed=0,
    config=None,
  ):
    self.arch = arch
    self.image_size = image_size
    self.budget = budget
    self.workdir = workdir
    self.seed = seed
    self.config = config

  def run(self, stage, images, labels, classes):
    """Trains, in a folder of its own unless `workdir` names one."""
    cli.configure()
    config = self.recipe()
    # What has to be the same for an interrupted run to go on.
    call = config.to_json(), labels.tobytes(), facts.digest(images)
    call += (id(self.init),)
    before, place = getattr(self, "_unfinished", None) or (None, None)
    if self.workdir or call != before:
      place = self.workdir or tempfile.mkdtemp(prefix="vit_ssl_jax_")
    beside = pathlib.Path(f"{place}_init")
    keep, self._unfinished = bool(self.workdir), None
    try:
      if self.init is not None:
        config.init_from = self.weights(beside)
        budget.load_model_config(config)
      if config.model.image_size is None:
        config.model.image_size = custom.image_size(facts.side_of(images))
      size = config.model.image_size
      dataset = facts.dataset(NAME, images, labels, classes, size)
      stage.run(config, place, dataset)
      self.take(place)
    except KeyboardInterrupt:
      keep, self._unfinished = True, (call, place)
      raise
    finally:
      if not keep:
        for path in (place, beside):
          shutil.rmtree(path, ignore_errors=True)
    return self

  def weights(self, beside):
    """The path of what training begins from; a teacher is saved `beside`."""
    if not isinstance(self.init, Estimator):
      return str(self.init)
    if not beside.exists():
      self.init.save(beside)
    elif files.read_json(beside / "result.json") != self.init.result_:
      raise UserError(f"{beside} is of another teacher: choose another workdir")
    return str(beside)

  def recipe(self):
    """The stage's ConfigDict with this estimator's parameters.

    Raises:
      UserError: the architecture or a key of `config` is unknown.
    """
    if self.arch not in common.MODELS:
      raise UserError(schema.unknown("arch", self.arch, [*common.MODELS]))
    config = recipes.get(self.STAGE, f"{self.arch},{NAME}")
    config.update(budget=self.budget, seed=self.seed)
    if self.image_size is not None:
      config.model.image_size = self.image_size
    schema.change(config, self.config or {})
    return config

  def take(self, workdir):
    """Reads what a run has left."""
    state, self.config_ = checkpoints.read(workdir)
    part = "teacher" if "teacher" in state else "params"
    self._state = {key: state[key] for key in ("step", part)}
    self._facts = files.read_json(pathlib.Path(workdir, "dataset.json"))
    self.result_ = workdirs.finished(workdir, int(state["step"])) or {}
    self.history_ = metrics.read(workdir)

  def save(self, path):
    """Writes a workdir, which `load`, export, predict and init_from read.

    Raises:
      UserError: there is something else at `path`.
    """
    sklearn.utils.validation.check_is_fitted(self, "config_")
    path = pathlib.Path(path)
    if path.exists() and any(path.iterdir()):
      raise UserError(f"{path} is not empty: choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    content = {"format": schema.FORMAT} | self.config_
    files.write(path / "config.json", json.dumps(content, indent=2) + "\n")
    files.write(path / "dataset.json", json.dumps(self._facts, indent=2) + "\n")
    files.write(path / "result.json", json.dumps(self.result_, indent=2) + "\n")
    lines = "".join(json.dumps(line) + "\n" for line in self.history_)
    files.write(path / metrics.NAME, lines)
    with checkpoints.manager(path, 1, 0) as saver:
      checkpoints.save(saver, int(self._state["step"]), self._state)

  @classmethod
  def load(cls, path):
    """Reads what `save`, or a run, has written.

    Raises:
      UserError: it is no workdir of this stage.
    """
    config = schema.read_config(path)
    if config["stage"] != cls.STAGE:
      raise UserError(
        f"{path} is a run of {config['stage']}: {cls.__name__} loads those of"
        f" {cls.STAGE}"
      )
    made = cls(
      config["model"]["name"], image_size=config["model"]["image_size"]
    )
    made.take(path)
    made.learnt()
    return made

  def learnt(self):
    """Sets what scikit-learn looks for in what is fitted."""

  def export(self, path, to="timm", overwrite=False):
    """Writes weights for elsewhere; see `vit_ssl_jax.export`."""
    with tempfile.TemporaryDirectory() as place:
      self.save(pathlib.Path(place, "run"))
      return export.export(
        pathlib.Path(place, "run"), to, path, overwrite=overwrite
      )

  def attention(self, images):
    """Where the last block looks: (N, heads, rows, columns) float32.

    Args:
      images: as of `fit`.
    """
    backbone, images = self.backbone(), self.decoded(images)
    return backbone.attention(images, BATCH)

  def backbone(self, num_classes=0):
    """The trained network, with what its images are normalised by."""
    sklearn.utils.validation.check_is_fitted(self, "config_")
    params = self._state.get("params") or self._state["teacher"]["backbone"]
    if not num_classes:
      params = {k: x for k, x in params.items() if k != "head"}
    model = models.from_config(
      ml_collections.ConfigDict(self.config_), num_classes
    )
    data = {key: self.config_[key] for key in ("mean", "std")}
    return networks.Network("", model, params, data)

  def decoded(self, images):
    """Images at the network's size, (N, S, S, 3) uint8."""
    sklearn.utils.validation.check_is_fitted(self, "config_")
    size = self.config_["model"]["image_size"]
    return facts.decode(facts.listed(images)[0], size)[0]

  def __sklearn_tags__(self):
    tags = super().__sklearn_tags__()
    tags.input_tags.two_d_array = False
    tags.input_tags.three_d_array = True
    tags.no_validation = True
    return tags


class ViewPrediction(sklearn.base.TransformerMixin, Estimator):
  """Stage 1: a teacher's features, learnt without labels.

  ViT predicts hidden patches, which serves a `Classifier` best. Views make the
  better features: config={"objective": "views"} (docs/own_images.md).

  Args:
    arch: vit, swin or cait.
    image_size: in pixels; None follows from the images.
    budget: of time, such as "30m", or of steps, such as "5000"; "" is what
      suits the set.
    workdir: the run's folder, where a run that is there goes on; None is a
      temporary one.
    seed: of all that is random.
    config: other keys of the recipe, such as {"model.depth": 6}.
  """

  STAGE = "pretrain"

  def fit(self, X, y=None):
    """Pretrains.

    Args:
      X: (N, H, W, 3) or (N, H, W) uint8, or a folder of images.
      y: ignored.

    Raises:
      UserError: X holds no images, or a parameter makes no sense.
      KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    images, _ = facts.listed(X)
    labels = np.zeros(len(images), np.int32)
    return self.run(pretrain, images, labels, ("image",))

  def transform(self, X):
    """Features of images, (N, D) float32."""
    return self.backbone().features(self.decoded(X), BATCH)


class Classifier(sklearn.base.ClassifierMixin, Estimator):
  """Stage 2: a classifier, from a teacher's weights or from scratch.

  The arguments but for init are those of `ViewPrediction`.

  Args:
    init: a fitted `ViewPrediction`, or a path that `--config.init_from` takes;
      None is from scratch.

  Attributes:
    classes_: the labels, sorted.
  """

  STAGE = "finetune"

  def __init__(
    self,
    arch="vit",
    *,
    init=None,
    image_size=None,
    budget="",
    workdir=None,
    seed=0,
    config=None,
  ):
    super().__init__(
      arch,
      image_size=image_size,
      budget=budget,
      workdir=workdir,
      seed=seed,
      config=config,
    )
    self.init = init

  def fit(self, X, y=None):
    """Fine-tunes.

    Args:
      X: (N, H, W, 3) or (N, H, W) uint8, or a folder with one of images for
        each class.
      y: (N,) labels of any kind; None where X is a folder.

    Raises:
      UserError: X and y do not fit, or a parameter makes no sense.
      KeyboardInterrupt: it was interrupted; the same call goes on.
    """
    images, names = facts.listed(X)
    y = names if y is None else y
    if y is None or len(y) != len(images):
      found = "none" if y is None else f"{len(y):,}"
      raise UserError(f"{len(images):,} images have {found} labels")
    self.classes_, labels = np.unique(np.asarray(y), return_inverse=True)
    if len(self.classes_) < 2:
      raise UserError(f"all labels are {self.classes_[0]}: there must be two")
    names = tuple(map(str, self.classes_))
    self.run(finetune, images, labels.astype(np.int32), names)
    self._facts["labels"] = self.classes_.tolist()
    return self

  def learnt(self):
    # A run of the command line has names of classes alone.
    labels = self._facts.get("labels", self._facts["classes"])
    self.classes_ = np.asarray(labels)

  def decision_function(self, X):
    """Logits, (N, C) float32."""
    sklearn.utils.validation.check_is_fitted(self, "config_")
    backbone = self.backbone(len(self.classes_))
    return backbone.logits(self.decoded(X), BATCH)

  def predict_proba(self, X):
    """Probabilities of the classes, (N, C) float32."""
    return scipy.special.softmax(self.decision_function(X), axis=-1)

  def predict(self, X):
    """The likeliest class of each image, (N,)."""
    logits = self.decision_function(X)
    return self.classes_[logits.argmax(-1)]
