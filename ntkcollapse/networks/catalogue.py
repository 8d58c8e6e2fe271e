"""Networks by name."""

from collections.abc import Callable
from typing import Any

from ntkcollapse._checks import check_choice
from ntkcollapse._options import check_options
from ntkcollapse.networks.densenet import densenet40
from ntkcollapse.networks.initialisers import LECUN_NORMAL, Initialiser
from ntkcollapse.networks.mlp import mlp
from ntkcollapse.networks.network import Network
from ntkcollapse.networks.resnet import resnet20
from ntkcollapse.networks.vgg import vgg11, vgg16
from ntkcollapse.networks.vision_transformer import vision_transformer

NETWORKS: dict[str, Callable[..., Network]] = {
    "mlp": mlp,
    "resnet20": resnet20,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "densenet40": densenet40,
    "vision-transformer": vision_transformer,
}


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
