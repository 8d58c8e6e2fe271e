"""The ladder's rungs, in its order. To add one: a function in a file of this folder, and its record here.

Tables, figures, reports, prices and the command line know a rung by its record alone. Plain data, without jax: a
function is imported when its rung is first climbed.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from ntkcollapse._palette import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, YELLOW
from ntkcollapse.comparison.rungs.assumptions import (
    AVERAGE,
    BLOCKS,
    FLOW,
    LAZY_FEATURES,
    LAZY_LAST_LAYER,
    NO_CROSS_TERMS,
    ONE_RATE,
    SEVERAL_RATES,
    STATISTICS_AT_REST,
    Assumption,
)

if TYPE_CHECKING:
    from ntkcollapse.comparison.rungs._course import Course
    from ntkcollapse.comparison.start import MeasuredStart

Needs = Literal["nothing", "network", "network along the path", "batch statistics"]


@dataclasses.dataclass(frozen=True)
class Rung:
    """One set of assumptions, and the prediction that follows from it.

    Args:
        name: on the command line and in files.
        number: as the ladder is counted.
        label: in legends and tables.
        function: (start, times, **options) → `Course`; or "module:function", of a module in this folder.
        needs: of the run, beside its last layer and block kernels: nothing; the network at the start; the network at
            every record from there on; or the network at the start, with batch normalisation.
        assumes: what it takes to be so, in the order in which assumptions are named.
        chains: of `CHAINS`, those that it is a link of.
        options: of the function, beside those that it is called with.
        colour, line: how it is drawn, always; line is a matplotlib line style. Both together tell it apart in grey.
    """

    name: str
    number: str
    label: str
    function: str | Callable[..., "Course"]
    needs: Needs
    assumes: tuple[Assumption, ...]
    chains: tuple[str, ...]
    colour: str
    line: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """Number and label, for legends and tables."""
        return f"{self.number}  {self.label}"

    @property
    def meaning(self) -> str:
        """Number and label, for help and error messages."""
        return f"rung {self.number}: {self.label}"

    def predict(self, start: "MeasuredStart", times: Any, **options: Any) -> "Course":
        """States and logits at these times, from the measured start.

        Raises:
            ValueError: the start lacks what the rung needs, or options that its function refuses.
            MemoryError: it does not fit.
        """
        start.require(self.needs)
        function = self.function
        if isinstance(function, str):
            module, name = function.split(":")
            function = getattr(import_module(f"ntkcollapse.comparison.rungs.{module}"), name)
        return function(start, times, **{**self.options, **options})


class Rungs(dict[str, Any]):
    """Rungs by name, in the ladder's order. Beside those that are listed it knows `blocks:q`, `blocks:q:groups=g`,
    `blocks-path:q` and `resolvents:m` for every q, g and m.
    """

    def __missing__(self, name: str) -> Rung:
        if match := _OF_RESOLVENTS.fullmatch(name):
            return _of_resolvents(int(match["m"]))
        match = _OF_BLOCKS.fullmatch(name)
        if match is None:
            raise KeyError(name)
        return _of_blocks(int(match["q"]), groups=int(match["g"] or 0), path=match["path"] is not None)

    def __contains__(self, name: object) -> bool:
        known = isinstance(name, str) and (_OF_BLOCKS.fullmatch(name) or _OF_RESOLVENTS.fullmatch(name))
        return super().__contains__(name) or bool(known)

    def in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """These names in the ladder's order, each once."""
        listed = {name: place for place, name in enumerate(self)}

        def place(name: str) -> tuple[float, int, bool, int]:
            if match := _OF_RESOLVENTS.fullmatch(name):
                return listed[_LISTED_BLOCKS] + 0.5, int(match["m"]), False, 0
            match = _OF_BLOCKS.fullmatch(name)
            if match is None:
                return listed[name], 0, False, 0
            return listed[_LISTED_BLOCKS], int(match["q"]), match["path"] is not None, int(match["g"] or 0)

        return tuple(sorted(set(names), key=place))


_OF_BLOCKS = re.compile(r"blocks(?P<path>-path)?:(?P<q>0|[1-9][0-9]{0,5})(?(path)|(?::groups=(?P<g>[1-9][0-9]{0,2}))?)")
_OF_RESOLVENTS = re.compile(r"resolvents:(?P<m>[1-9][0-9]?)")
# The one of the family that stands for it where rungs are listed.
_LISTED_BLOCKS = "blocks:3"


def _of_blocks(q: int, *, groups: int = 0, path: bool = False) -> Rung:
    """The rung of q blocks beside the class indicators, at the start or along the measured path.

    groups: how many rates what is left out has beside its mean one.
    """
    said = f", {groups} group{'' if groups == 1 else 's'} of rates" if groups else ""
    return Rung(
        name=f"blocks-path:{q}" if path else f"blocks:{q}" + (f":groups={groups}" if groups else ""),
        number=f"2c':{q}" if path else f"2c:{q}" + (f"+{groups}" if groups else ""),
        label=f"class pairs and {q} Krylov block{'' if q == 1 else 's'}{', measured path' if path else said}",
        function="blocks:blocks_path" if path else "blocks:blocks",
        needs="network along the path" if path else "network",
        assumes=(SEVERAL_RATES if groups else ONE_RATE, *(_MOVING_KERNEL if path else _FROZEN_KERNEL)),
        chains=(),
        colour=YELLOW if path else ORANGE,
        line=":",
        options={"blocks": q, "groups": groups} if groups else {"blocks": q},
    )


def _of_resolvents(m: int) -> Rung:
    """The rung of m resolvents on class indicators and on the residual at the start."""
    return Rung(
        name=f"resolvents:{m}",
        number=f"2d:{m}",
        label=f"class pairs, residual, {m} resolvent{'' if m == 1 else 's'}",
        function="blocks:resolvents",
        needs="network",
        assumes=(ONE_RATE, *_FROZEN_KERNEL),
        chains=(),
        colour=ORANGE,
        line="-",
        options={"resolvents": m},
    )


# Chain → the rungs that it takes for its prices to stand beside those of the chains before it.
CHAINS: dict[str, tuple[str, ...]] = {
    "frozen": (),
    "path": ("block-path", "sample-path"),
    "lazy": ("network-linearised", "features-linearised"),
}

_FROZEN_KERNEL = (AVERAGE, STATISTICS_AT_REST, LAZY_FEATURES, FLOW)
_MOVING_KERNEL = (AVERAGE, STATISTICS_AT_REST, FLOW)

RUNGS = Rungs(
    (rung.name, rung)
    for rung in (
        Rung(
            name="block-frozen",
            number="1",
            label="block kernel, frozen",
            function="block:block_frozen",
            needs="nothing",
            assumes=(*BLOCKS, *_FROZEN_KERNEL),
            chains=("frozen", "path"),
            colour=RED,
            line="-",
        ),
        Rung(
            name="block-path",
            number="2",
            label="block kernel, measured path",
            function="block:block_path",
            needs="nothing",
            assumes=(*BLOCKS, *_MOVING_KERNEL),
            chains=("path",),
            colour=RED,
            line=":",
        ),
        Rung(
            name="class-pairs",
            number="2a",
            label="class-pair blocks",
            function="class_pairs:class_pairs",
            needs="network",
            assumes=(ONE_RATE, NO_CROSS_TERMS, *_FROZEN_KERNEL),
            chains=("frozen",),
            colour=ORANGE,
            line="--",
        ),
        Rung(
            name="within-spectrum",
            number="2b",
            label="class pairs, within-class spectrum",
            function="within_spectrum:within_spectrum",
            needs="network",
            assumes=(NO_CROSS_TERMS, *_FROZEN_KERNEL),
            chains=("frozen",),
            colour=ORANGE,
            line="-.",
        ),
        _of_blocks(3),
        Rung(
            name="sample-frozen",
            number="3",
            label="sample kernel, frozen",
            function="sample_kernel:sample_frozen",
            needs="network",
            assumes=_FROZEN_KERNEL,
            chains=("frozen",),
            colour=BLUE,
            line="-",
        ),
        Rung(
            name="sample-path",
            number="3'",
            label="sample kernel, measured path",
            function="sample_kernel:sample_path",
            needs="network along the path",
            assumes=_MOVING_KERNEL,
            chains=("path",),
            colour=BLUE,
            line=":",
        ),
        Rung(
            name="features-linearised",
            number="4",
            label="features linearised",
            function="features_linearised:features_linearised",
            needs="network",
            assumes=(STATISTICS_AT_REST, LAZY_FEATURES, FLOW),
            chains=("frozen", "lazy"),
            colour=GREEN,
            line="-",
        ),
        Rung(
            name="features-coupled",
            number="4b",
            label="features linearised, batch statistics too",
            function="features_linearised:features_coupled",
            needs="batch statistics",
            assumes=(LAZY_FEATURES, FLOW),
            chains=("frozen", "lazy"),
            colour=GREEN,
            line="--",
        ),
        Rung(
            name="network-linearised",
            number="5",
            label="network linearised",
            function="network_linearised:network_linearised",
            needs="network",
            assumes=(LAZY_LAST_LAYER, STATISTICS_AT_REST, LAZY_FEATURES, FLOW),
            chains=("lazy",),
            colour=SKY,
            line="--",
        ),
        Rung(
            name="network-flow",
            number="6",
            label="gradient flow of the network",
            function="network_flow:network_flow",
            needs="network",
            assumes=(FLOW,),
            chains=("frozen", "path", "lazy"),
            colour=PURPLE,
            line="-",
        ),
    )
)


def chain(name: str) -> tuple[str, ...]:
    """The rungs of a chain from many assumptions to few, and "network" at its end."""
    links = sorted((rung for rung in RUNGS.values() if name in rung.chains), key=lambda rung: -len(rung.assumes))
    return (*(rung.name for rung in links), "network")


def given_up(first: str, second: str, *, batch_norm: bool) -> tuple[Assumption, ...]:
    """What one rung assumes and another ("network": nothing) does not; none where the other one assumes more.

    batch_norm: whether the network has batch statistics, which are at rest by an assumption only where they are there.
    """
    one, other = (RUNGS[name].assumes if name in RUNGS else () for name in (first, second))
    if set(other) - set(one):
        return ()
    concerned = (a for a in one if batch_norm or a != STATISTICS_AT_REST)
    return tuple(a for a in concerned if a not in other)
