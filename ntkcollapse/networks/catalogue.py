"""Networks by name."""

from typing import Any

from ntkcollapse._checks import check_choice
from ntkcollapse._options import check_options
from ntkcollapse.choices import NETWORKS
from ntkcollapse.networks.initialisers import LECUN_NORMAL, Initialiser
from ntkcollapse.networks.network import Network


def network(
    name: str, num_classes: int = 10, *, initialiser: Initialiser | None = LECUN_NORMAL, **options: Any
) -> Network:
    """The network of this name; `options` are those of its own function.

    Raises:
        ValueError: an unknown name, an option that this network does not have, or a value of another type.
    """
    check_choice("network", name, NETWORKS)
    checked = check_options(name, NETWORKS[name], options, taken=("num_classes", "initialiser"))
    return NETWORKS[name](num_classes=num_classes, initialiser=initialiser, **checked)
