"""The house rules that a script can hold: who may import what."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "vit_ssl_jax"
# A room imports from the floors below it alone: rooms of one floor do not know
# each other.
FLOORS = [
  {"main", "predict", "benchmark", "reproduce", "quickstart", "estimators"},
  {"export"},
  {"train"},
  {"report"},
  {"evaluate"},
  {"interop"},
  {"run"},
  {"recipes"},
  {"data", "augment", "models"},
  {"cli"},
  {"kernels"},
  {"parallel", "files"},
  {"errors"},
]


def imports(path):
  """(module, whether at the top level) of everything that a file imports."""
  tree = ast.parse(path.read_text())
  top = set(tree.body)
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, node in top
    elif isinstance(node, ast.ImportFrom):
      if node.module == "vit_ssl_jax":
        for alias in node.names:
          yield f"vit_ssl_jax.{alias.name}", node in top
      else:
        yield node.module, node in top


def room(path):
  if path.name == "__main__.py":
    return "main"  # a command is the top floor, wherever it lies
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name):
  return next(i for i, names in enumerate(FLOORS) if name in names)


def test_imports_point_down():
  for path in PACKAGE.rglob("*.py"):
    here = room(path)
    if here == "__init__":
      continue
    for module, _ in imports(path):
      if not module.startswith("vit_ssl_jax."):
        continue
      there = module.split(".")[1]
      folder = path.relative_to(PACKAGE).parts[0]  # a command's own room
      if there not in (here, folder):
        assert floor(there) > floor(here), f"{path} imports {module}"


def test_flax_linen_is_for_models_alone():
  for path in PACKAGE.rglob("*.py"):
    names = [module for module, _ in imports(path)]
    if room(path) != "models":
      assert "flax.linen" not in names, path


def test_tensorflow_is_imported_late_and_in_few_places():
  for path in PACKAGE.rglob("*.py"):
    for module, top in imports(path):
      if module.split(".")[0] in ("tensorflow", "tensorflow_datasets", "clu"):
        assert room(path) in ("data", "run"), path
        # The builders are TensorFlow's own, and imported late themselves.
        assert not top or "builders" in path.parts, path


def test_configs_are_the_recipes_of_the_package():
  for path in (ROOT / "configs").glob("*.py"):
    names = {module for module, _ in imports(path)}
    assert names <= {f"vit_ssl_jax.recipes.{path.stem}"}, path
