"""Scikit-learn estimators of both stages.

  from vit_ssl_jax import Classifier, Pretrainer

  teacher = Pretrainer("vit", budget="10m").fit(images)
  features = teacher.transform(images)
  model = Classifier("vit", init=teacher, budget="10m").fit(images, labels)
  model.predict_proba(test_images)

They train as `python -m main` does on an `npz:` set of the same images, to the
same numbers. An interrupted `fit` leaves a checkpoint from which the next `fit`
resumes.
"""

import dataclasses
import json
import pathlib
import shutil
import tempfile
import warnings

import ml_collections
import numpy as np
import scipy.special
import sklearn.base
import sklearn.utils.validation

from vit_ssl_jax import cli, export, files, models, recipes, train
from vit_ssl_jax.data import facts
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import model as networks
from vit_ssl_jax.recipes import custom, schema
from vit_ssl_jax.run import checkpoints, metrics, workdir as workdirs
from vit_ssl_jax.train import resolve

NAME = "npz:in memory"  # config.dataset of images in memory
BATCH = 512  # images a batch of inference


def __getattr__(name):
  if name != "ViewPrediction":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  warnings.warn(
    "ViewPrediction is now called Pretrainer", DeprecationWarning, stacklevel=2
  )
  return Pretrainer


@dataclasses.dataclass(eq=False, repr=False)
class Estimator(sklearn.base.BaseEstimator):
  """Base class of both stages; its fields are described in `Pretrainer`."""

  init = None

  arch: str = "vit"
  _: dataclasses.KW_ONLY
  image_size: int | None = None
  budget: str = ""
  workdir: str | None = None
  seed: int = 0
  config: dict | None = None

  def run(self, images, labels, classes):
    """Trains in `workdir`, or in a temporary folder without one."""
    cli.configure()
    config = self.make_config()
    # An interrupted fit is resumed by the same call alone.
    call = (config.to_json(), labels.tobytes(), facts.digest(images))
    call += (id(self.init),)
    previous, place = getattr(self, "_interrupted", None) or (None, None)
    if self.workdir or call != previous:
      place = self.workdir or tempfile.mkdtemp(prefix="vit_ssl_jax_")
    init_folder = pathlib.Path(f"{place}_init")
    keep, self._interrupted = bool(self.workdir), None
    try:
      if self.init is not None:
        config.init_from = self.save_init(init_folder)
        resolve.load_model_config(config)
      if config.model.image_size is None:
        config.model.image_size = custom.image_size(facts.side_of(images))
      size = config.model.image_size
      dataset = facts.dataset(NAME, images, labels, classes, size)
      train.run(config, place, dataset)
      self.read_run(place)
    except KeyboardInterrupt:
      keep, self._interrupted = True, (call, place)
      raise
    finally:
      if not keep:
        for path in (place, init_folder):
          shutil.rmtree(path, ignore_errors=True)
    return self

  def save_init(self, folder):
    """The path of the initial weights; saves an estimator to `folder`."""
    if not isinstance(self.init, Estimator):
      return str(self.init)
    if not folder.exists():
      self.init.save(folder)
    elif files.read_json(folder / "result.json") != self.init.result_:
      raise UserError(f"{folder} has another teacher: choose another workdir")
    return str(folder)

  def make_config(self):
    """The stage's recipe with this estimator's parameters."""
    architectures = [*models.ARCHITECTURES]
    if self.arch not in architectures:
      raise UserError(schema.unknown("arch", self.arch, architectures))
    config = recipes.get(self.STAGE, f"{self.arch},{NAME}")
    config.update(budget=self.budget, seed=self.seed)
    if self.image_size is not None:
      config.model.image_size = self.image_size
    schema.change(config, self.config or {})
    return config

  def read_run(self, workdir):
    """Sets the fitted attributes from a run."""
    state, self.config_ = checkpoints.read(workdir)
    part = "teacher" if "teacher" in state else "params"
    self._state = {key: state[key] for key in ("step", part)}
    self._dataset = files.read_json(pathlib.Path(workdir, "dataset.json"))
    self.result_ = workdirs.finished(workdir, int(state["step"])) or {}
    self.history_ = metrics.read(workdir)

  def save(self, path):
    """Writes a workdir, for `load` and all commands, to an empty folder."""
    sklearn.utils.validation.check_is_fitted(self, "config_")
    path = pathlib.Path(path)
    if path.exists() and any(path.iterdir()):
      raise UserError(f"{path} is not empty: choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    contents = {
      "config": {"format": schema.FORMAT} | self.config_,
      "dataset": self._dataset,
      "result": self.result_,
    }
    for name, content in contents.items():
      files.write_json(path / f"{name}.json", content)
    lines = "".join(json.dumps(line) + "\n" for line in self.history_)
    files.write(path / metrics.NAME, lines)
    with checkpoints.manager(path, 1, 0) as saver:
      checkpoints.save(saver, int(self._state["step"]), self._state)

  @classmethod
  def load(cls, path):
    """Reads a workdir of `save` or of a run of this stage."""
    config = schema.read_config(path)
    if config["stage"] != cls.STAGE:
      raise UserError(
        f"{path} is a run of {config['stage']}: {cls.__name__} loads those of"
        f" {cls.STAGE}"
      )
    model = config["model"]
    estimator = cls(model["name"], image_size=model["image_size"])
    estimator.read_run(path)
    return estimator

  def export(self, path, to="timm", overwrite=False):
    """Writes weights for another library; see `vit_ssl_jax.export`."""
    with tempfile.TemporaryDirectory() as folder:
      run = pathlib.Path(folder, "run")
      self.save(run)
      return export.export(run, to, path, overwrite=overwrite)

  def attention(self, images):
    """Attention maps of the last block, (N, heads, rows, columns) float32."""
    images = self.decode(images)
    return self.network().attention(images, BATCH)

  def network(self, num_classes=0):
    """The trained network, with the mean and std of its images."""
    params = self._state.get("params") or self._state["teacher"]["backbone"]
    if not num_classes:
      params = {k: x for k, x in params.items() if k != "head"}
    config = ml_collections.ConfigDict(self.config_)
    model = models.from_config(config, num_classes)
    data = {key: self.config_[key] for key in ("mean", "std")}
    return networks.Network("", model, params, data)

  def decode(self, images):
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


class Pretrainer(sklearn.base.TransformerMixin, Estimator):
  """Pretraining without labels; transforms images to features.

  ViT trains as a masked autoencoder, which suits a `Classifier` best; Swin and
  CaiT predict views. config={"objective": "views"} trains ViT on views, whose
  features are better without fine-tuning (docs/own_images.md).

  Args:
    arch: vit, swin or cait.
    image_size: in pixels; None follows from the images.
    budget: time such as "30m", or steps such as "5000"; "" follows from the
      number of images.
    workdir: the run's folder, in which an interrupted run resumes; None is a
      temporary one.
    seed: random seed.
    config: other keys of the recipe, such as {"model.depth": 6}.

  Attributes, after `fit`:
    config_: the run's config as nested dicts.
    result_: the content of result.json.
    history_: the lines of metrics.jsonl.
  """

  STAGE = "pretrain"

  def fit(self, X, y=None):
    """Pretrains; after an interrupt the same call resumes.

    Args:
      X: (N, H, W, 3) or (N, H, W) uint8, or a folder of images.
      y: ignored.
    """
    images, _ = facts.listed(X)
    labels = np.zeros(len(images), np.int32)
    return self.run(images, labels, ("image",))

  def transform(self, X):
    """Features of images, (N, D) float32."""
    images = self.decode(X)
    return self.network().features(images, BATCH)


@dataclasses.dataclass(eq=False, repr=False)
class Classifier(sklearn.base.ClassifierMixin, Estimator):
  """Fine-tuning from a teacher, or training from scratch.

  Parameters and attributes are those of `Pretrainer`, and these:

  Args:
    init: a fitted `Pretrainer`, or a path as in `--config.init_from`; None
      trains from scratch.

  Attributes, after `fit`:
    classes_: the labels, sorted.
  """

  _: dataclasses.KW_ONLY
  init: object = None

  STAGE = "finetune"

  def fit(self, X, y=None):
    """Fine-tunes; after an interrupt the same call resumes.

    Args:
      X: (N, H, W, 3) or (N, H, W) uint8, or a folder with a folder of images
        for each class.
      y: (N,) labels of any type; None if X is a folder.
    """
    images, folders = facts.listed(X)
    y = folders if y is None else y
    if y is None or len(y) != len(images):
      count = "no" if y is None else f"{len(y):,}"
      raise UserError(f"{len(images):,} images have {count} labels")
    classes, labels = np.unique(np.asarray(y), return_inverse=True)
    if len(classes) < 2:
      raise UserError(f"all labels are {classes[0]}: there must be two classes")
    names = tuple(map(str, classes))
    self.run(images, labels.astype(np.int32), names)
    self._dataset["labels"] = classes.tolist()
    self.classes_ = classes
    return self

  def read_run(self, workdir):
    super().read_run(workdir)
    # A run of the command line has names of classes alone.
    labels = self._dataset.get("labels", self._dataset["classes"])
    self.classes_ = np.asarray(labels)

  def decision_function(self, X):
    """Logits, (N, C) float32."""
    images = self.decode(X)  # checks that it is fitted
    return self.network(len(self.classes_)).logits(images, BATCH)

  def predict_proba(self, X):
    """Probabilities of the classes, (N, C) float32."""
    return scipy.special.softmax(self.decision_function(X), axis=-1)

  def predict(self, X):
    """The most probable class of each image, (N,)."""
    return self.classes_[self.decision_function(X).argmax(-1)]
