"""The public names: there, lazy, and never mistaken for a module of the same name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hybrid_jax as hj


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", hj.__all__)
def test_every_public_name_is_there(name):
    assert getattr(hj, name).__name__.rpartition(".")[2] == name
    assert name in dir(hj)


def test_type_checkers_see_the_same_homes():
    tree = ast.parse(Path(hj.__file__).read_text())
    seen = {
        alias.name: str(node.module).removeprefix("hybrid_jax.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen.pop("models") == "hybrid_jax"
    assert seen == hj._HOMES
    assert sorted([*seen, "models"]) == sorted(hj.__all__)


def test_the_package_alone_does_not_import_jax():
    assert python("import hybrid_jax, sys; print('jax' in sys.modules)") == "False\n"


def test_no_module_has_the_name_of_a_public_function():
    root = Path(hj.__file__).parent
    modules = {path.stem for path in root.iterdir()} - {"models"}
    assert modules & set(hj.__all__) == set()


def test_star_import_and_an_unknown_name():
    assert python("from hybrid_jax import *; print(Strategy.__name__)") == "Strategy\n"
    with pytest.raises(AttributeError, match="module 'hybrid_jax' has no attribute 'Strateg'"):
        hj.Strateg  # noqa: B018
    with pytest.raises(ImportError):
        from hybrid_jax import Strateg  # noqa: F401


def test_no_module_is_ignored_by_git():
    root = Path(hj.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "hybrid_jax"]
    ignored = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert [name for name in ignored.splitlines() if name.endswith(".py")] == []
