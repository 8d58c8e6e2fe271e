"""A measured run from one of its records on: what every rung of the ladder starts from."""

import warnings
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse import ntk
from ntkcollapse._checks import check_positive
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.comparison._memory import columns, pairs, require_memory
from ntkcollapse.comparison.network_at import NetworkAt
from ntkcollapse.comparison.rungs import RUNGS, Needs
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.krylov_kernel import KrylovKernel
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.sample_kernel import DenseKernel, SampleKernel
from ntkcollapse.trajectory import Trajectory


class MeasuredStart:
    """The state and the kernels of a measured run at one record, and the times that follow.

    What costs something (kernels beyond the run's own) is computed once, when the first rung asks for it.

    Args:
        run: measured on everything that the network is trained on, with states H, W, b and a block kernel, in flow
            time.
        index: of the record to start from; negative from the end.
        networks: index of a record → the network at that moment. The one at `index` serves the rungs from 2a on; those
            at later records the sample kernel's path.
        weight_decay: λ of the penalty λ/2 Σ ‖p‖² over weights (tensors with more than one axis), beside the loss ½‖R‖²
            summed over samples: λ of the mean loss times N C. None: what the run's settings name.
        homogeneity: degree p of the features in the weights that decay. The penalty then makes features decay at p λ:
            exact for the direction of the pull where features are positively homogeneous (ReLU layers without biases:
            p is their number), an approximation for the kernel, which is taken as given. 0, no decay of features, where
            batch normalisation makes them blind to the scale of their weights. Rungs that have parameters decay those
            and need no p.

    Raises:
        ValueError: a run of the theory, one without states or kernels, one that is not in flow time, of another loss
            than the squared one, or measured on a part of its training set; a start that leaves nothing to predict, or
            a network that is not the one measured at its record.
    """

    def __init__(
        self,
        run: Trajectory,
        index: int = 0,
        networks: Mapping[int, NetworkAt] | None = None,
        *,
        weight_decay: float | None = None,
        homogeneity: float = 0.0,
    ):
        if weight_decay is None:
            weight_decay = float(run.equation.weight_decay.W)
        check_positive("weight_decay", weight_decay, zero=True)
        check_positive("homogeneity", homogeneity, zero=True)
        T = run.times.shape[0]
        at = index + T if index < 0 else index
        if not 0 <= at < T - 1:
            raise ValueError(
                f"start: expected a record from 0 to {T - 2} of {T} (one at least must follow), got {index}."
            )
        if not run.equation.of_network:
            raise ValueError(
                "run: expected the run of a network, got one of the theory, with a loss scale, decay and bias of its "
                "own; call `simulate` from its last_layer(index)."
            )
        if run.kernel is None:
            raise ValueError("run: expected a run measured with kernels, got one without; measure κ on the way.")
        if not isinstance(run.states, LastLayer):
            raise ValueError(
                "run: expected a measured run with its states H, W, b, got one that keeps observables only."
            )
        check_clock(run)
        if not run.equation.is_squared:
            raise ValueError(
                "run: expected one of the squared loss, which the theory is of, got "
                f"{type(run.equation.loss).__name__}."
            )
        if run.on_a_probe:
            raise ValueError(
                f"run: expected measurements on all of the {run.training_classes.num_samples} samples that it is "
                f"trained on, got a probe of {run.classes.num_samples}; train with --probe-per-class 0, or let "
                "`ntkcollapse compare` make the run again from its settings."
            )
        self.run, self.index, self.networks = run, at, dict(networks or {})
        self.weight_decay, self.homogeneity = float(weight_decay), float(homogeneity)
        if at in self.networks:
            _check_same(self.networks[at], self.state)

    @property
    def classes(self) -> Classes:
        """Behind the columns."""
        return self.run.classes

    @property
    def times(self) -> Float[Array, " T"]:
        """The run's own times from the start on."""
        return self.run.times[self.index :]

    @property
    def network_run(self) -> Trajectory:
        """The run from the start on, without its states: what the rungs are compared with."""
        run, i = self.run, self.index
        observables = {name: value[i:] for name, value in run.observables.items()}
        return Trajectory(
            run.times[i:],
            observables,
            run.classes,
            equation=run.equation,
            names=run.names,
            settings=run.settings | {"start": i},
            versions=run.versions,
        )

    @cached_property
    def state(self) -> LastLayer:
        """(H, W, b) as measured at the start, in the precision of the theory."""
        measured = self.run.last_layer(self.index)
        return jax.tree.map(lambda x: x.astype(jnp.result_type(float)), measured)

    @property
    def flow_options(self) -> dict[str, Any]:
        """Options of `Flow` for the rungs that know the last layer alone: decay rates of H and W, and the bias."""
        bias = self.run.equation.bias
        if self.index in self.networks:
            bias = "free" if self.networks[self.index].bias else "absent"
        decay = {"H": self.homogeneity * self.weight_decay, "W": self.weight_decay}
        return {"weight_decay": decay, "bias": bias}

    def lacks(self, needs: Needs) -> str:
        """What of this a rung would miss here; empty where it is there."""
        if needs == "nothing":
            return ""
        if self.index not in self.networks:
            least = " and ".join(repr(name) for name, rung in RUNGS.items() if rung.needs == "nothing")
            return (
                f"networks: expected the network at record {self.index}, where the prediction starts; this rung needs "
                f"more of it than its last layer. Keep its parameters there, or stay on rungs {least}."
            )
        missing = [i for i in range(self.index, self.run.times.shape[0]) if i not in self.networks]
        if needs == "network along the path" and missing:
            return (
                f"networks: expected the network at every record from {self.index} on, got none for {missing[:6]}; "
                "the frozen sample kernel needs the one at the start only."
            )
        if needs == "batch statistics" and self.networks[self.index].coupled is None:
            return (
                "network: expected a network with batch normalisation, got one without, of which this rung is the one "
                "before it on the ladder."
            )
        return ""

    def require(self, needs: Needs) -> None:
        """Raises ValueError where the start lacks this, and says what is missing."""
        if why := self.lacks(needs):
            raise ValueError(why)

    @property
    def network(self) -> NetworkAt:
        """The network at the start.

        Raises:
            ValueError: the run came without.
        """
        self.require("network")
        return self.networks[self.index]

    @property
    def block_kernel(self) -> SampleKernel:
        """The run's own kernel at the start: three numbers."""
        return self.run.kernel_at(self.index)

    @property
    def block_path(self) -> KernelPath | SampleKernel:
        """The run's own kernel along the times from the start on."""
        assert self.run.kernel is not None
        return KernelPath.of(self.times, [self.run.kernel.at(t) for t in self.times])

    @cached_property
    def class_pair_kernel(self) -> BlockKernel:
        """The general block kernel at the start: a mean for each pair of classes, a diagonal for each class."""
        network = self.network
        labels = np.asarray(self.classes.labels)
        found = ntk.block_statistics(*network.as_trained, labels)
        with warnings.catch_warnings():
            # Measured class pairs need not be ordered as the theorem assumes; that is what the rung is for.
            warnings.simplefilter("ignore", UserWarning)
            return BlockKernel.from_class_pairs(found.class_diagonal, found.class_pairs)

    @cached_property
    def sample_kernel(self) -> DenseKernel:
        """Θ^h averaged over features at the start: N × N.

        Raises:
            MemoryError: N² numbers do not fit.
        """
        return self._sample_kernel_of(self.network)

    def krylov_kernel(self, blocks: int, *, groups: int = 0, by_products: bool = False) -> KrylovKernel:
        """The `KrylovKernel` of Θ^h averaged over features at the start, with so many blocks.

        groups: rates of what it leaves out beside their mean, by the features at the start.
        by_products: without the N × N array of `sample_kernel`: n products of Θ^h with each of C (1 + blocks) vectors,
        and its trace from the diagonals of `class_pair_kernel`.

        Raises:
            MemoryError: N² numbers do not fit.
        """
        operator, trace = self._operator(by_products)
        kernel = KrylovKernel.of(operator, self.classes, blocks=blocks, trace=trace)
        return kernel.with_groups(operator, self.state, self.classes, groups=groups) if groups else kernel

    def resolvent_kernel(self, resolvents: int, *, by_products: bool = False) -> KrylovKernel:
        """`KrylovKernel.for_flow` of Θ^h averaged over features at the start, until the last record.

        by_products: as for `krylov_kernel`; how many they are, the kernel's spectrum says.

        Raises:
            MemoryError: N² numbers do not fit.
        """
        operator, trace = self._operator(by_products)
        time = float(self.times[-1] - self.times[0])
        return KrylovKernel.for_flow(operator, self.state, self.classes, time, resolvents=resolvents, trace=trace)

    def _operator(self, by_products: bool) -> tuple[Any, float | None]:
        """Θ^h averaged over features, and its trace where that is known beside it."""
        if not by_products:
            return self.sample_kernel, None
        return _products_of(self.network), float(jnp.sum(self.classes.weights * self.class_pair_kernel.diagonal))

    def krylov_path(self, blocks: int, *, by_products: bool = False) -> KernelPath:
        """The kernels at every record from the start on between the directions of `krylov_kernel`, as a path.

        It needs the network at all of them, one N × N array at a time; by_products: none, with traces that are means
        over random vectors orthogonal to the directions from the second record on.

        Raises:
            ValueError: a record without its network.
            MemoryError: N² numbers do not fit.
        """
        self.require("network along the path")
        first, kernels = self.krylov_kernel(blocks, by_products=by_products), []
        for i in range(self.index + 1, self.run.times.shape[0]):
            kernel_of = _products_of if by_products else self._sample_kernel_of
            kernels.append(first.of_same_directions(kernel_of(self.networks[i]), self.classes))
        return KernelPath.of(self.times, [first, *kernels])

    @cached_property
    def sample_path(self) -> KernelPath:
        """The sample kernel at every record from the start on, as a path; it needs the network at all of them.

        Raises:
            ValueError: a record without its network.
            MemoryError: T N² numbers do not fit.
        """
        self.require("network along the path")
        records = range(self.index, self.run.times.shape[0])
        N = self.classes.num_samples
        require_memory("sample-path", 8 * N * N * 2 * len(records), {"sample-frozen": pairs(N)} | self._least)
        kernels = [self.sample_kernel, *(self._sample_kernel_of(self.networks[i]) for i in records[1:])]
        return KernelPath.of(self.times, kernels)

    @property
    def _least(self) -> dict[str, int]:
        """The rung that needs least, and how many bytes."""
        return {"class-pairs": columns(len(self.times), *self.state.H.shape)}

    def _sample_kernel_of(self, network: NetworkAt) -> DenseKernel:
        N = self.classes.num_samples
        require_memory("sample-frozen", pairs(N), self._least)
        return DenseKernel(network.feature_kernel(outputs="mean"))


def _products_of(network: NetworkAt) -> ntk.NTKOperator:
    """Products with Θ^h averaged over features."""
    return ntk.NTKOperator(*network.as_trained, outputs="mean")


def check_clock(run: Trajectory) -> None:
    """Raises ValueError where the times of a run are optimiser steps, and says why no flow time is known for them."""
    if not run.equation.in_flow_time:
        raise ValueError(
            f"run: expected times of gradient flow, got optimiser steps: {run.equation.without_clock}. Compare runs of "
            "sgd on all samples alike (--no-balanced where classes are unequal), or give the run a clock of your own."
        )


def _check_same(network: NetworkAt, state: LastLayer) -> None:
    """The network must be the one that was measured; single precision leaves about 1e-6 of the features."""
    measured = network.last_layer
    if measured.H.shape != state.H.shape:
        raise ValueError(f"networks: expected features {state.H.shape} as measured, got {measured.H.shape}.")
    apart = float(jnp.linalg.norm(measured.logits - state.logits) / (1 + jnp.linalg.norm(state.logits)))
    if not apart < 1e-3:
        raise ValueError(
            f"networks: expected the network that was measured at the start, got one whose logits differ by "
            f"{apart:.2g} of their norm; is it of the same step, seed and samples?"
        )
