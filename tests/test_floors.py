"""The house: every module has a room on a floor, and imports go down or stay in the room.

A new file fails `test_every_module_has_a_room` until it has a place here.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = "hybrid_jax"
ROOT = Path(__file__).parents[1] / PACKAGE

# (floor, room, modules): "config.*" is the package and all in it; an exact name goes before that.
HOUSE = [
    (-2, "errors", ["errors"]),
    (-1, "tables", ["tables"]),
    (-1, "figures", ["figures"]),
    (-1, "entries", ["data.entries"]),
    (0, "config", ["config.*"]),
    (
        0,
        "schedules",
        [
            "pipeline",
            "pipeline.picture",
            "pipeline.placement",
            "pipeline.runnable",
            "pipeline.schedules",
            "pipeline.simulate",
            "pipeline.slots",
            "pipeline.task_table",
            "pipeline.tasks",
            "pipeline.timeline",
            "pipeline.validate",
        ],
    ),
    (0, "tokenizer", ["data.bpe", "data.bytes", "data.tokenizer"]),
    (1, "hardware", ["hardware.*"]),
    (1, "sharding", ["sharding.*"]),
    (1, "models", ["models.*"]),
    (1, "timing", ["timing"]),
    (
        2,
        "executor",
        [
            "pipeline.stage_worker",
            "pipeline.executor",
            "pipeline.program",
            "pipeline.ring",
            "pipeline.head_split",
        ],
    ),
    (2, "baseline", ["benchmark.baseline"]),
    (3, "train", ["train.*"]),
    (4, "parity", ["parity"]),
    (4, "nonfinite", ["nonfinite"]),
    (4, "data", ["data.*"]),
    (4, "checkpoint", ["checkpoint.*"]),
    (4, "generation", ["generation.*"]),
    (4, "evaluation", ["evaluation"]),
    (4, "analysis", ["analysis.*"]),
    (4, "runtime", ["runtime.*"]),
    (4, "metrics", ["metrics.*"]),
    (5, "trainer", ["trainer", "hooks.*"]),
    (5, "benchmark", ["benchmark.*"]),
    (5, "planning", ["planning.*"]),
    (6, "wiring", ["", "__main__", "run.*", "cli.*"]),
]

ARRAYS = ["jax", "jaxlib", "flax", "optax", "orbax"]

# What a room must not know although it lies below, or outside the package.
UNKNOWN_TO = {
    "errors": ARRAYS,
    "tables": ARRAYS,
    "figures": ARRAYS,
    "config": ARRAYS,
    "schedules": ARRAYS,
    "tokenizer": ARRAYS,
    "models": ["hybrid_jax.config.strategy", "hybrid_jax.config.load"],
    "executor": ["hybrid_jax.models.attention", "flax", "optax", "orbax"],
    "baseline": ["hybrid_jax.pipeline", "hybrid_jax.train", "hybrid_jax.sharding"],
    "train": ["hybrid_jax.config.load", "orbax"],
    "data": ARRAYS,
    "runtime": ["hybrid_jax.models"],
    "trainer": [
        "hybrid_jax.sharding",
        "hybrid_jax.pipeline",
        "hybrid_jax.models.attention",
        "hybrid_jax.models.decoder",
        "hybrid_jax.models.layers",
    ],
}


def place(module: str) -> tuple[int, str] | None:
    """The (floor, room) of a module, named without the package ("" is the package itself)."""
    rooms = {pattern: (floor, room) for floor, room, modules in HOUSE for pattern in modules}
    return rooms.get(module) or rooms.get(f"{module.partition('.')[0]}.*")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(source: str) -> set[str]:
    """Every module that `source` imports, anywhere: in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the module's full name"
            # In `from a.b import c`, c may be a module or a name in one.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if own_name(name) in MODULES else str(node.module) for name in names}
    return found


def own_name(module: str) -> str | None:
    """The name inside the package of a module of ours, else None."""
    head, _, rest = module.partition(".")
    return rest if head == PACKAGE else None


def complaints(module: str, source: str) -> list[str]:
    placed = place(module)
    assert placed is not None, f"give {module} a room in HOUSE"
    floor, room = placed
    found = []
    for target in sorted(imports(source)):
        for unknown in UNKNOWN_TO.get(room, []):
            if target == unknown or target.startswith(f"{unknown}."):
                found.append(f"{module} ({room}) imports {target}, which it must not know")
        own = own_name(target)
        target_place = place(own) if own is not None else None
        if target_place is not None and not (target_place[0] < floor or target_place[1] == room):
            found.append(
                f"{module} ({room}, floor {floor}) imports {target} "
                f"({target_place[1]}, floor {target_place[0]})"
            )
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_room(module):
    assert place(module) is not None, f"give {module} a room in HOUSE"


@pytest.mark.parametrize("module", [module for module in MODULES if place(module)])
def test_imports_go_down(module):
    assert complaints(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("config.model", "import jax.numpy as jnp"),
        ("pipeline.schedules", "def f():\n    from jax import lax"),
        ("models.layers", "from hybrid_jax.sharding.rules import AxisRules"),
        ("models.layers", "import hybrid_jax.config.strategy"),
        ("pipeline.ring", "from hybrid_jax.train import step"),
        ("data.text", "from hybrid_jax.generation.sampling import generate"),
        ("train.step", "import hybrid_jax"),
        ("trainer", "from hybrid_jax.sharding import mesh"),
    ],
)
def test_an_import_up_is_found(module, source):
    assert len(complaints(module, source)) == 1


def test_a_new_file_in_a_mixed_folder_has_no_room():
    assert place("pipeline.new") is None
    assert place("new") is None
    assert place("models.new") == (1, "models")
