"""Ways to compute the empirical NTK: one signature, the same numbers."""

from ntkcollapse._checks import check_choice
from ntkcollapse.choices import ENGINES
from ntkcollapse.ntk.engines._contract import OUTPUTS, Outputs, contract, kernel_shape, mirror
from ntkcollapse.ntk.engines._engine import Chunks, Engine
from ntkcollapse.ntk.engines.jacobian import Jacobian
from ntkcollapse.ntk.engines.layerwise import Layerwise
from ntkcollapse.ntk.engines.neural_tangents import NeuralTangents
from ntkcollapse.ntk.engines.ntvp import NTVP


def get_engine(engine: str | Engine) -> Engine:
    """The engine of that name, or the engine itself.

    Raises:
        ValueError: an unknown name.
        ImportError: neural-tangents where that package is missing.
    """
    if isinstance(engine, Engine):
        return engine
    check_choice("engine", engine, ENGINES)
    return ENGINES[engine]()


__all__ = [
    "ENGINES",
    "NTVP",
    "OUTPUTS",
    "Chunks",
    "Engine",
    "Jacobian",
    "Layerwise",
    "NeuralTangents",
    "Outputs",
    "contract",
    "get_engine",
    "kernel_shape",
    "mirror",
]
