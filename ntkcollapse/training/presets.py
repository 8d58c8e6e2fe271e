"""Settings of runs that show something, by name."""

from pathlib import Path

from ntkcollapse._checks import check_choice
from ntkcollapse._config import resolve
from ntkcollapse.training.config import TrainConfig

_FOLDER = Path(__file__).parents[1] / "presets"
# Name → its file, whose first line says what the run shows, and whose second what it costs.
PRESETS = {file.stem: file for file in sorted(_FOLDER.glob("*.toml"), key=lambda file: file.stem)}


def preset(name: str) -> TrainConfig:
    """The settings of this name; `dataclasses.replace` changes some of them.

    Raises:
        ValueError: an unknown name.

    >>> preset("digits").epochs
    10240
    """
    check_choice("preset", name, PRESETS)
    return resolve(TrainConfig, {"config": str(PRESETS[name])})


def about_preset(name: str) -> str:
    """What the run of a preset shows, and what it costs.

    Raises:
        ValueError: an unknown name.
    """
    return " ".join(_comments(name))


def preset_table() -> str:
    """Every preset with what its run shows and costs, and the network and data behind it, for a terminal."""
    parts = []
    for name in PRESETS:
        shows, costs = _comments(name)
        config = preset(name)
        what = " ".join((config.network, *config.network_options))
        parts.append(f"{name}: {what} on {config.dataset}, {config.epochs} epochs\n    {shows}\n    {costs}")
    return "\n\n".join(parts)


def _comments(name: str) -> tuple[str, str]:
    """The two lines that a preset's file begins with."""
    check_choice("preset", name, PRESETS)
    shows, costs = (line.removeprefix("# ") for line in PRESETS[name].read_text(encoding="utf-8").splitlines()[:2])
    return shows, costs
