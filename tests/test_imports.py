"""Imports run one way: between packages, between the floors of `experiments`, and to no program."""

import ast
import pkgutil
from pathlib import Path

import pytest

import rgpo_jax

ROOT = Path(__file__).parents[1]
# Package -> those of the suite that it may know.
PACKAGES = {
    "rgpo_jax": (),
    "agents": ("rgpo_jax",),
    "envs": ("rgpo_jax",),
    "experiments": ("agents", "envs", "rgpo_jax"),
}
# Of `experiments`: each knows those before it alone.
FLOORS = ("cli", "record", "plan", "training", "comparing")
# Of programs, by (importer, imported): why one is built on another. CONTRIBUTING.md has them, too.
BUILT_ON = {
    ("run", "play"): "--log-film plays an episode",
    ("play", "align"): "--prompt talks with a model",
    ("sweep", "align"): "its cells are runs of it",
    ("reproduction", "report"): "it is a report with claims",
    ("theory", "benchmark"): "costs are of the programs that the benchmark times",
    ("benchmark", "plain_ppo"): "a peer",
}


def imported(path):
    """Full names of what a module of the suite imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def parts_of_experiments():
    """(module, its folder or program, that of what it imports), where these two differ."""
    for path in modules("experiments"):
        own = path.relative_to(ROOT / "experiments").parts[0].removesuffix(".py")
        for name in imported(path):
            package, _, rest = name.partition(".")
            if package == "experiments" and (part := rest.split(".")[0]) != own:
                yield path, own, part


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_those_below_them(package):
    allowed = {package, *PACKAGES[package]}
    for path in modules(package):
        known = {name.split(".")[0] for name in imported(path)} & {*PACKAGES, "tests"}
        assert known <= allowed, f"{path} imports {known - allowed}"


def test_floors_import_those_before_them():
    for path, own, part in parts_of_experiments():
        if own in FLOORS:
            assert part in FLOORS[: FLOORS.index(own)], f"{path} imports {part}"


def test_programs_import_no_other_but_those_that_they_are_built_on():
    found = {
        (own, part): path
        for path, own, part in parts_of_experiments()
        if own not in FLOORS and part not in FLOORS
    }
    assert found.keys() == BUILT_ON.keys(), {key: found.get(key) for key in found.keys() ^ BUILT_ON}


def test_every_folder_of_experiments_is_a_floor_or_has_a_program():
    for folder in (ROOT / "experiments").iterdir():
        if (folder / "__init__.py").exists():
            assert (folder.name in FLOORS) != (folder / "__main__.py").exists(), folder


def test_the_package_names_all_of_its_modules():
    there = {module.name for module in pkgutil.iter_modules(rgpo_jax.__path__)}
    names = imported(ROOT / "rgpo_jax" / "__init__.py")
    assert {name.split(".")[1] for name in names if name.startswith("rgpo_jax.")} == there
