"""Settings of runs that show something, by name."""

from pathlib import Path

from ntkcollapse._checks import check_choice
from ntkcollapse._config import resolve
from ntkcollapse.training.config import TrainConfig

_FOLDER = Path(__file__).parents[1] / "presets"
# Name → its file, whose first line says what the run shows and what it costs.
PRESETS = {file.stem: file for file in sorted(_FOLDER.glob("*.toml"))}


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
    check_choice("preset", name, PRESETS)
    return PRESETS[name].read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
