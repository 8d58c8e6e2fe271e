"""Imports only run downwards, and importing changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ntkcollapse"

# From the ground up. Names on one line are siblings: none imports another.
FLOORS = (
    {"_checks", "_files", "_palette", "_safe", "_table", "_types"},
    {"classes", "_config", "_options"},
    {"sample_kernel", "losses", "last_layer", "clock", "weight_decay"},
    {"block_kernel", "equation"},
    {"kernel_path", "_earlier_files"},
    {"data"},
    {"ntk", "collapse", "theory", "networks"},
    {"observables", "trajectory"},
    {"simulation"},
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
