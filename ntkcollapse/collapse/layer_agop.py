"""AGOP with respect to the input of every layer, and the neural feature ansatz along a network."""

from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from ntkcollapse._checks import check_finite, check_real, check_whole
from ntkcollapse.collapse.agop import ansatz_correlation, matrix_square_root, neural_feature_matrix


class LayerAnsatz(NamedTuple):
    """One layer: its neural feature matrix, its AGOP, and their correlations."""

    feature_matrix: Float[Array, "fan fan"]
    agop: Float[Array, "fan fan"]
    correlation: float
    root_correlation: float


def layer_agops(
    module: nn.Module,
    variables: PyTree,
    x: Float[ArrayLike, "N *shape"],
    *,
    chunk: int = 128,
    **call: Any,
) -> dict[str, Float[Array, "fan fan"]]:
    r"""AGOP of a flax network with respect to what each layer with weights sees.

    A layer maps an input a to W a. With δ_ik = ∂f_k(x_i)/∂(W a_i) the gradient with respect to a, through this layer
    alone, is Wᵀδ_ik, and

        AGOP = Wᵀ ( (1/N) Σ_i Σ_k Σ_p δ_ikp δ_ikpᵀ ) W

    where p runs over the positions at which the layer acts (those of an image for a convolution, whose input a is then
    one window; one position for a dense layer on features). All layers come from the same K backward passes of each
    sample. Where skip connections feed a layer's input to other layers too, only the way through this layer counts.

    Args:
        module, variables, call: as for `record_layers`; all layers with a `kernel` are `flax.linen.Dense` or `Conv`
            (without groups or mask), called once each.
        x: points to average over, rows.
        chunk: samples differentiated at once.
    Returns:
        By the names of `record_layers`: symmetric, positive semi-definite, (fan, fan) with fan the inputs of one
        output.
    Raises:
        ValueError: another kind of layer with a `kernel` (it is named), no samples, outputs that are not one row a
            sample, numbers that are not finite.
    References:
        Radhakrishnan et al. (2024); the average over windows of convolutions: Beaglehole, Radhakrishnan, Pandit &
        Belkin (2023).
    """
    check_real(x=x)
    x = jnp.asarray(x)
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x: expected rows of at least one sample, got shape {x.shape}.")
    check_whole("chunk", chunk)
    check_finite("x", x)
    kernels = layer_kernels(module, variables, x[:1], **call)
    totals: dict[str, Array] = {}
    for start in range(0, x.shape[0], chunk):
        grams = _cotangent_grams(module, variables, x[start : start + chunk], call)
        totals = {name: totals[name] + value if totals else value for name, value in grams.items()}
    agops = {}
    for name, kernel in kernels.items():
        W = kernel.reshape(-1, kernel.shape[-1])
        agops[name] = jnp.matmul(W @ (totals[name] / x.shape[0]), W.T, precision="highest")
        check_finite(f"AGOP of {name}", agops[name])
    return agops


def layer_kernels(module: nn.Module, variables: PyTree, x: Any, **call: Any) -> dict[str, Array]:
    """The weights of the layers of `record_layers`, by the same names, in order of their calls."""
    kernels: dict[str, Array] = {}

    def keep(run, args, kwargs, context):
        output = run(*args, **kwargs)
        layer = context.module
        if _has_weights(context, args):
            name = "/".join(layer.path) or type(layer).__name__
            if name in kernels:
                raise ValueError(
                    f"{name}: expected a layer that is called once; its AGOP is not defined for shared ones."
                )
            kernels[name] = layer.get_variable("params", "kernel")
        return output

    def trace(x):
        with nn.intercept_methods(keep):
            module.apply(variables, x, **call)

    jax.eval_shape(trace, x)
    return kernels


def neural_feature_ansatz(
    module: nn.Module, variables: PyTree, x: Float[ArrayLike, "N *shape"], *, chunk: int = 128, **call: Any
) -> dict[str, LayerAnsatz]:
    """WᵀW beside the AGOP of every layer, with their correlation and that of WᵀW with the AGOP's square root.

    Arguments as for `layer_agops`; call it at several moments of a training to see the ansatz set in.
    """
    kernels = layer_kernels(module, variables, jnp.asarray(x)[:1], **call)
    layers = {}
    for name, G in layer_agops(module, variables, x, chunk=chunk, **call).items():
        F = neural_feature_matrix(kernels[name])
        layers[name] = LayerAnsatz(
            F, G, float(ansatz_correlation(F, G)), float(ansatz_correlation(F, matrix_square_root(G)))
        )
    return layers


@eqx.filter_jit
def _cotangent_grams(module, variables, x, call) -> dict[str, Array]:
    """Σ_i Σ_k Σ_p δ δᵀ of every layer."""
    shapes = jax.eval_shape(lambda x: _outputs_with_shifts(module, variables, x, None, call), x)[1]
    zeros = {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}
    y, pull, _ = jax.vjp(lambda shifts: _outputs_with_shifts(module, variables, x, shifts, call), zeros, has_aux=True)
    if y.ndim != 2 or y.shape[0] != x.shape[0]:
        raise ValueError(f"module: expected outputs (N, K), one row a sample; got {y.shape} for N = {x.shape[0]}.")
    grams = {name: jnp.zeros((s.shape[-1],) * 2, s.dtype) for name, s in shapes.items()}
    for k in range(y.shape[1]):
        (cotangents,) = pull(jnp.zeros_like(y).at[:, k].set(1))
        for name, δ in cotangents.items():
            flat = δ.reshape(-1, δ.shape[-1])
            grams[name] = grams[name] + jnp.matmul(flat.T, flat, precision="highest")
    return grams


def _has_weights(context, args) -> bool:
    layer = context.module
    weighted = context.method_name == "__call__" and bool(args) and layer.has_variable("params", "kernel")
    if weighted:
        plain = isinstance(layer, nn.Conv) and layer.feature_group_count == 1 and layer.mask is None
        if not (plain or isinstance(layer, nn.Dense)):
            raise ValueError(
                f"{'/'.join(layer.path)}: expected flax.linen.Dense or Conv without groups or mask, whose kernel is "
                f"one matrix between an input (or window) and an output; got {type(layer).__name__}."
            )
    return weighted


def _outputs_with_shifts(module, variables, x, shifts, call) -> tuple[Any, dict[str, Array]]:
    """The module's output with `shifts` added to what each layer gives; and those outputs' shapes."""
    outputs: dict[str, Array] = {}

    def shift(run, args, kwargs, context):
        output = run(*args, **kwargs)
        if _has_weights(context, args):
            name = "/".join(context.module.path) or type(context.module).__name__
            outputs[name] = output
            output = output if shifts is None else output + shifts[name]
        return output

    with nn.intercept_methods(shift):
        y = module.apply(variables, x, **call)
    return y, outputs
