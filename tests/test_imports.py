"""Imports only run downwards, and importing changes nothing."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ntkcollapse as nc
from ntkcollapse import choices
from ntkcollapse.cli import main
from ntkcollapse.commands import COMMANDS
from ntkcollapse.data.known_sets import SETS

PACKAGE = Path(__file__).parents[1] / "ntkcollapse"

# From the ground up. Names on one line are siblings: none imports another.
FLOORS = (
    {
        "_arrays",
        "_checks",
        "_files",
        "_flat_trace",
        "_lazy",
        "_palette",
        "_platforms",
        "_safe",
        "_simplex",
        "_types",
        "choices",
    },
    {"_coercion", "_precision", "_table", "observable_table"},
    {"_netcdf", "classes", "_config", "_options", "checkpoints", "compiled"},
    {"run_directory"},
    {"sample_kernel", "losses", "last_layer", "clock", "weight_decay"},
    {"block_kernel", "equation", "krylov_kernel"},
    {"kernel_path", "_earlier_files"},
    {"data"},
    {"ntk", "collapse", "theory", "networks"},
    {"observables", "statements", "trajectory"},
    {"simulation", "captions", "phases"},
    {"comparison", "training"},
    {"plots"},
    {"commands"},
    {"cli"},
)
FLOOR = {name: level for level, floor in enumerate(FLOORS) for name in floor}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """First names below `ntkcollapse` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ntkcollapse":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "ntkcollapse" and len(parts) > 1:
                    found.add(parts[1])
    return found


def violations() -> list[str]:
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        room = room_of(file)
        if room in ("__init__", "__main__"):
            continue
        if room not in FLOOR:
            wrong.append(f"{room} stands on no floor: add it to FLOORS")
            continue
        for other in imports(file) - {room}:
            # The face of the package re-exports names; below it they are imported from where they live.
            if FLOOR.get(other, len(FLOORS)) >= FLOOR[room]:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {other}")
    return wrong


def test_imports_run_downwards():
    assert violations() == []


def test_import_changes_nothing():
    """No x64 flag, no backend started, no TensorFlow, no plotting style."""
    code = (
        "import jax, sys, ntkcollapse\n"
        "assert not jax.config.jax_enable_x64\n"
        "assert 'tensorflow' not in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
        "from jax.extend import backend\n"
        "import jax._src.xla_bridge as bridge\n"
        "assert not bridge._backends, 'importing started a backend'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


HEAVY = {"diffrax", "equinox", "flax", "jax", "matplotlib", "optax", "orbax", "pandas", "scipy", "sklearn", "xarray"}


def modules_after(code: str) -> set[str]:
    """First names of the modules that a fresh interpreter has imported by the end of some code."""
    code += "\nimport sys; print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    code = f"""
from ntkcollapse.cli import main
try:
    main({[*arguments, "--help"]!r})
except SystemExit as ended:
    assert ended.code == 0"""
    assert not modules_after(code) & HEAVY


def test_the_package_imports_on_use():
    assert not modules_after("import ntkcollapse as nc; dir(nc), nc.__version__") & HEAVY
    assert set(nc.__all__) <= set(dir(nc))
    for package in (nc, nc.training, nc.comparison):
        for name in package.__all__:
            assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="module 'ntkcollapse' has no attribute 'simulat'"):
        getattr(nc, "simulat")  # noqa: B009
    # A function stays what it is where a module has its name, whoever imported that module first.
    code = (
        "import ntkcollapse.training.sweep; from ntkcollapse.training import sweep; assert not hasattr(sweep, 'sweep')"
    )
    modules_after(code)


@pytest.mark.parametrize(
    "table",
    [value for value in vars(choices).values() if isinstance(value, choices.Choices)],
    ids=lambda t: next(iter(t)),
)
def test_tables_of_names_load(table):
    for name in table:
        assert callable(table[name])
        assert table.meanings[name]


def test_known_sets_are_in_the_table_of_names():
    assert {"digits", *SETS} == set(choices.IMAGES)


def test_experiments_need_nothing_private():
    root, wrong = PACKAGE.parent, []
    for file in sorted(
        file for folder in ("simulations", "benchmarks", "notebooks") for file in root.glob(f"{folder}/**/*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            parts = [part for name in names for part in f"{module}.{name}".split(".") if part]
            if parts[:1] == ["ntkcollapse"] and any(part.startswith("_") and part != "__version__" for part in parts):
                wrong.append(f"{file.relative_to(root)} imports {module}: {', '.join(names)}")
    assert wrong == []


def test_one_version(capsys):
    root = PACKAGE.parent
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"ntkcollapse {nc.__version__}\n"
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    assert f"\nversion: {nc.__version__}\n" in (root / "CITATION.cff").read_text()


# What shows the note of a run to people, and what reads the notes of earlier files as the equations that they meant.
NOTES_ARE_READ_BY = ("commands", "_earlier_files")


def reads_of_notes(file: Path) -> list[int]:
    """Lines that take a value out of something called settings."""

    def is_note(node: ast.AST) -> bool:
        return getattr(node, "attr", getattr(node, "id", "")) in ("settings", "settings_json")

    return [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text()))
        if (isinstance(node, ast.Subscript) and is_note(node.value))
        or (isinstance(node, ast.Attribute) and node.attr == "get" and is_note(node.value))
    ]


def test_nothing_is_computed_from_a_note():
    """What a trajectory obeys is its equation; its settings say for people what made it."""
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if room_of(file) not in NOTES_ARE_READ_BY]
    assert {str(file.relative_to(PACKAGE)): lines for file in files if (lines := reads_of_notes(file))} == {}
    assert reads_of_notes(PACKAGE / "_earlier_files.py"), "the search finds what there is"


def test_modules_of_packages_are_at_hand_before_anything_else_is_imported():
    code = "import ntkcollapse as nc; assert 'layer_peeled' in nc.models.MODELS"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
