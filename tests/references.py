"""The reference trajectories of tests/reference, as objects of the package."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ntkcollapse import BlockKernel, Classes, LastLayer

FOLDER = Path(__file__).parent / "reference"
CONSTANT = (
    "a_generic b2_E0_centred b3_E0_uncentred b4_riccati b5_E0_saddle b_logistic c2_nc3_fails c_noncollapse "
    "d_imbalanced e2_decay_distinct e_decay_equal f2_ufm_balanced f_ufm"
).split()


class Reference(NamedTuple):
    """A stored run: what it started from, and all its arrays by name."""

    classes: Classes
    kappa: BlockKernel
    start: LastLayer
    weight_decay: dict[str, float]
    arrays: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.arrays[name]


def load(name: str) -> Reference:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    lam_W, lam_H, lam_b = (float(x) for x in arrays["lam_WHb"])
    return Reference(
        classes=Classes(sizes=tuple(arrays["m_c"])),
        kappa=BlockKernel(*arrays["kappa"]),
        start=LastLayer(H=arrays["H"][0], W=arrays["W"][0], b=arrays["b"][0]),
        weight_decay={"W": lam_W, "H": lam_H, "b": lam_b},
        arrays=arrays,
    )
