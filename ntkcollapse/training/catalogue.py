"""Everything that can be measured on the way, by name."""

from collections.abc import Mapping
from functools import partial

from ntkcollapse._checks import check_choice
from ntkcollapse.training.layer_measurements import FeatureAnsatz, HeldOutCollapse, LayerCollapse
from ntkcollapse.training.measurements import Measurement, batch, kernel, last_layer, parameters, split

# What a run measures unless told otherwise. In the order in which they are made: what is shared is paid for by the
# first that needs it.
DEFAULT_MEASUREMENTS: dict[str, Measurement] = {
    "batch": batch,
    "train": partial(split, "train"),
    "test": partial(split, "test"),
    "kappa": partial(kernel, "kappa"),
    "gamma": partial(kernel, "gamma"),
    "last-layer": last_layer,
    "parameters": parameters,
}

# The others look at every layer, or at all features of both parts, and are made where they are named.
MEASUREMENTS: dict[str, Measurement] = DEFAULT_MEASUREMENTS | {
    "test-collapse": HeldOutCollapse(),
    "layers": LayerCollapse(),
    "ansatz": FeatureAnsatz(),
}


def chosen(names: tuple[str, ...], extra: Mapping[str, Measurement] | None = None) -> dict[str, Measurement]:
    """The measurements of these names, in the order of `MEASUREMENTS`, and then the user's own.

    A measurement of one's own may take a name of the catalogue: it is made in place of that one.

    Raises:
        ValueError: an unknown name.
    """
    for name in names:
        check_choice("measure", name, MEASUREMENTS)
    return {name: MEASUREMENTS[name] for name in MEASUREMENTS if name in names} | dict(extra or {})
