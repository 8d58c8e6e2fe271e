"""Networks of flax nnx."""

from flax import nnx

from ntkcollapse.networks.frameworks.model import Mode, Model, Modes, by_path, from_path, mode_arguments

_EVALUATE = (
    "in nnx, `model.eval()` must reach every layer: leave use_running_average and deterministic to the layers' own "
    "attributes, and do not pass them in calls"
)
_HAND_OVER = "in nnx, hand over the module itself, or the parameters and state of nnx.split(model, nnx.Param, ...)"


def of_nnx(module: nnx.Module, modes: Modes | None) -> Model:
    """The model of an nnx module; the module stays as it is."""
    called, graphs = mode_arguments((), modes), {}
    for mode in ("evaluation", "training", "coupled"):
        copy = nnx.clone(module)
        if mode == "evaluation":
            copy.eval()
        else:
            copy.train()
        if mode == "coupled":
            copy.set_attributes(deterministic=True, raise_if_not_found=False)
        graphs[mode], params, state = nnx.split(copy, nnx.Param, ...)

    def apply(mode: Mode, values, moving, x, key):
        copy = nnx.merge(graphs[mode], from_path(values, params), from_path(moving, state))
        outputs = copy(x, **called[mode])
        return outputs, by_path(nnx.split(copy, nnx.Param, ...)[2])

    def take(params, state):
        if isinstance(params, nnx.Module):
            _, params, state = nnx.split(params, nnx.Param, ...)
        params = params if isinstance(params, dict) else by_path(params)
        return params, state if state is None or isinstance(state, dict) else by_path(state)

    return Model(
        framework="flax nnx",
        name=type(module).__name__,
        apply=apply,
        params=by_path(params),
        state=by_path(state),
        take=take,
        evaluate=_EVALUATE,
        hand_over=_HAND_OVER,
    )
