"""Networks of PyTorch: the operations that `torch.export` finds in a module, in JAX."""

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]: an extra

from ntkcollapse.networks.frameworks.model import Mode, Model

_EVALUATE = (
    "in PyTorch, model.eval() must reach every layer: give functional.batch_norm and functional.dropout "
    "training=self.training"
)
_HAND_OVER = "in PyTorch, hand over the module itself, or its state_dict(), as of(model, x) and recorder(step, model)"


def of_pytorch(module: torch.nn.Module, x: Any) -> Model:
    """The model of a PyTorch module, which stays as it is; its inputs are PyTorch's, images (channels, height, width).

    Raises:
        NotImplementedError: a layer whose operation is not among those known here; it is named.
        ValueError: a module that `torch.export` cannot trace, or cannot call on these inputs.
    """
    programs = {mode: _exported(module, mode, x) for mode in ("evaluation", "training", "coupled")}
    params, state = _numbers(module)

    def apply(mode: Mode, params, state, x, key):
        return programs[mode](params, state, x, key)

    def take(values, more):
        if isinstance(values, torch.nn.Module):
            return _numbers(values)
        values = {name: _array(value) for name, value in values.items()}
        trained = {name: value for name, value in values.items() if name in params or name not in state}
        buffers = {name: value for name, value in values.items() if name in state}
        return trained, (buffers or None) if more is None else {name: _array(value) for name, value in more.items()}

    return Model(
        framework="PyTorch",
        name=type(module).__name__,
        apply=apply,
        params=params,
        state=state,
        take=take,
        evaluate=_EVALUATE,
        hand_over=_HAND_OVER,
    )


def _numbers(module: torch.nn.Module) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(parameters, buffers) by name, copies."""
    params, buffers = module.named_parameters(), module.named_buffers()
    return {name: _array(value) for name, value in params}, {name: _array(value) for name, value in buffers}


def _array(value: Any) -> Any:
    return np.array(value.detach().cpu().numpy()) if isinstance(value, torch.Tensor) else value


def _exported(module: torch.nn.Module, mode: Mode, x: Any) -> Callable:
    """The module in a mode as a function (params, state, x, key) ↦ (outputs, state moved)."""
    copied = copy.deepcopy(module).cpu().train(mode != "evaluation")
    if mode == "coupled":
        for part in copied.modules():
            # Everything but batch normalisation at rest.
            part.training = part.training and isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
    kind = next((p.dtype for p in copied.parameters()), torch.float32)
    if np.issubdtype(np.dtype(x.dtype), np.integer):
        kind = torch.int64
    sample = torch.zeros((3, *np.shape(x)[1:]), dtype=kind)
    try:
        with torch.no_grad():
            program = torch.export.export(copied, (sample,), dynamic_shapes=({0: torch.export.Dim("N")},))
            program = program.run_decompositions()
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"network: {type(module).__name__} cannot be traced on samples of shape {np.shape(x)[1:]} "
            f"({type(error).__name__}: {said}); images are (channels, height, width) in PyTorch, and what decides by "
            "the values of a tensor cannot be exported."
        ) from error
    return _Program(program)


class _Program:
    """An exported program, run in JAX."""

    def __init__(self, program: Any):
        signature = program.graph_signature
        self.nodes = list(program.graph.nodes)
        self.named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.constants = {
            name: jnp.asarray(program.constants[target].detach().numpy())
            for name, target in signature.inputs_to_lifted_tensor_constants.items()
        }
        # What is no buffer is shared by name, or not kept in checkpoints of PyTorch.
        self.mutated = dict(signature.buffers_to_mutate)
        self.outputs = list(signature.user_outputs)
        for node in self.nodes:
            if node.op == "call_function" and _lowered(node) is None:
                raise NotImplementedError(_unknown(node))

    def __call__(self, params: dict, state: dict, x: Any, key: Any) -> tuple[Any, dict]:
        values: dict[str, Any] = {}
        numbers, draws = params | state, 0
        for node in self.nodes:
            if node.op == "placeholder":
                name = self.named.get(node.name)
                values[node.name] = self.constants.get(node.name, x) if name is None else numbers[name]
            elif node.op == "call_function":
                arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n.name])
                options = dict(options)
                if _name(node) in _RANDOM:
                    if key is None:
                        raise ValueError(f"dropout: expected none in evaluation mode, got one; {_EVALUATE}.")
                    options["key"] = jax.random.fold_in(key, draws)
                    draws += 1
                lowered = _lowered(node)
                assert lowered is not None
                values[node.name] = lowered(*arguments, **options)
        moved = {name: jnp.asarray(values[node], jnp.result_type(state[name])) for node, name in self.mutated.items()}
        if len(self.outputs) != 1:
            raise ValueError(f"outputs: expected the logits alone, got {len(self.outputs)} outputs; return one.")
        return values[self.outputs[0]], state | moved


def _name(node: Any) -> str:
    target = node.target
    return (
        target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", "")
    )


def _lowered(node: Any) -> Callable | None:
    return _OPERATIONS.get(_name(node))


def _unknown(node: Any) -> str:
    """Which layer it is in, and what it does."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    kind = getattr(kind, "__name__", str(kind)).rpartition(".")[2]
    where = f"layer {path!r} ({kind})" if path else "the module"
    return (
        f"network: {where} does {node.target}, which this package does not know; known are fully connected and "
        "convolutional networks and torchvision's ResNets. Give a function of your own in JAX: of(f, x, params), with "
        "the weights of model.state_dict()."
    )


# ---- operations of ATen, on rows of images (N, channels, height, width)


def _pairs(value: Any, dims: int) -> tuple[int, ...]:
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * dims if len(value) == 1 else value


def _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed or any(output_padding):
        raise NotImplementedError("network: a transposed convolution, which this package does not know.")
    dims = weight.ndim - 2
    letters = "HWD"[:dims]
    out = jax.lax.conv_general_dilated(
        x,
        weight,
        _pairs(stride, dims),
        [(p, p) for p in _pairs(padding, dims)],
        rhs_dilation=_pairs(dilation, dims),
        dimension_numbers=(f"NC{letters}", f"OI{letters}", f"NC{letters}"),
        feature_group_count=groups,
    )
    return out if bias is None else out + bias.reshape(-1, *(1,) * dims)


def _max_pool(x, kernel, stride=(), padding=0, dilation=1, ceil_mode=False):
    if ceil_mode:
        raise NotImplementedError("network: max pooling with ceil_mode, which this package does not know.")
    kernel = _pairs(kernel, 2)
    stride = _pairs(stride, 2) if stride else kernel
    windows = [(0, 0), (0, 0), *((p, p) for p in _pairs(padding, 2))]
    pooled = jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, 1, *kernel),
        (1, 1, *stride),
        windows,
        window_dilation=(1, 1, *_pairs(dilation, 2)),
    )
    return pooled, None


def _average_pool(x, kernel, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor=None):
    if ceil_mode or divisor is not None:
        raise NotImplementedError("network: average pooling with ceil_mode or a divisor, which is not known here.")
    kernel = _pairs(kernel, 2)
    stride = _pairs(stride, 2) if stride else kernel
    windows = [(0, 0), (0, 0), *((p, p) for p in _pairs(padding, 2))]

    def summed(values):
        return jax.lax.reduce_window(values, 0.0, jax.lax.add, (1, 1, *kernel), (1, 1, *stride), windows)

    return summed(x) / (math.prod(kernel) if count_include_pad else summed(jnp.ones_like(x)))


def _adaptive_average(x, size):
    size = _pairs(size, 2)
    for axis, (length, wanted) in enumerate(zip(x.shape[2:], size, strict=True), 2):
        if length % wanted:
            raise NotImplementedError(f"network: adaptive pooling of {length} positions to {wanted}, which do not fit.")
        x = x.reshape(*x.shape[:axis], wanted, length // wanted, *x.shape[axis + 1 :]).mean(axis + 1)
    return x


def _batch_norm(x, weight, bias, mean, var, momentum, eps):
    return _normalised(x, weight, bias, mean, var, eps), None, None


def _batch_norm_training(x, weight, bias, mean, var, training, momentum, eps):
    if not training:
        return _normalised(x, weight, bias, mean, var, eps), None, None, mean, var
    axes, count = (0, *range(2, x.ndim)), x.size // x.shape[1]
    m, v = jnp.mean(x, axes), jnp.var(x, axes)
    unbiased = v * (count / max(count - 1, 1))
    averages = ((1 - momentum) * mean + momentum * m, (1 - momentum) * var + momentum * unbiased)
    return _normalised(x, weight, bias, m, v, eps), None, None, *averages


def _batch_norm_without_averages(x, weight, bias, training, momentum, eps):
    axes = (0, *range(2, x.ndim))
    return _normalised(x, weight, bias, jnp.mean(x, axes), jnp.var(x, axes), eps), None, None


def _normalised(x, weight, bias, mean, var, eps):
    shape = (1, -1, *(1,) * (x.ndim - 2))
    out = (x - mean.reshape(shape)) / jnp.sqrt(var.reshape(shape) + eps)
    out = out if weight is None else out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


def _layer_norm(x, shape, weight, bias, eps):
    axes = tuple(range(-len(shape), 0))
    out = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + eps)
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias), None, None


def _group_norm(x, weight, bias, N, channels, positions, groups, eps):
    parts = x.reshape(x.shape[0], groups, -1)
    out = (parts - parts.mean(-1, keepdims=True)) / jnp.sqrt(parts.var(-1, keepdims=True) + eps)
    out, shape = out.reshape(x.shape), (1, -1, *(1,) * (x.ndim - 2))
    out = out if weight is None else out * weight.reshape(shape)
    return (out if bias is None else out + bias.reshape(shape)), None, None


def _dropout(x, p, training=True, *, key):
    kept = jax.random.bernoulli(key, 1 - p, x.shape)
    return jnp.where(kept, x / (1 - p), jnp.zeros_like(x)), kept


def _mean(x, dim=None, keepdim=False, dtype=None):
    return jnp.mean(x, None if dim is None else tuple(dim), keepdims=keepdim)


def _slice(x, dim=0, start=None, end=None, step=1):
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


def _addmm(bias, x, weight, beta=1, alpha=1):
    out = x @ weight
    return (out if alpha == 1 else alpha * out) + (bias if beta == 1 else beta * bias)


_RANDOM = ("native_dropout",)
_OPERATIONS: dict[str, Callable] = {
    "getitem": operator.getitem,
    "add": lambda a, b, alpha=1: a + (b if alpha == 1 else alpha * b),
    "sub": lambda a, b, alpha=1: a - (b if alpha == 1 else alpha * b),
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": lambda a, b: a**b,
    "sqrt": jnp.sqrt,
    "exp": jnp.exp,
    "addmm": _addmm,
    "mm": lambda a, b: a @ b,
    "bmm": lambda a, b: a @ b,
    "linear": lambda x, weight, bias=None: x @ weight.T if bias is None else x @ weight.T + bias,
    "convolution": _convolution,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit_functional": _batch_norm_training,
    "_native_batch_norm_legit": _batch_norm_without_averages,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "max_pool2d_with_indices": _max_pool,
    "max_pool2d": lambda *args, **options: _max_pool(*args, **options)[0],
    "avg_pool2d": _average_pool,
    "_adaptive_avg_pool2d": _adaptive_average,
    "adaptive_avg_pool2d": _adaptive_average,
    "native_dropout": _dropout,
    "mean": _mean,
    "sum": lambda x, dim=None, keepdim=False, dtype=None: jnp.sum(x, None if not dim else tuple(dim), keepdims=keepdim),
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "gelu": lambda x, approximate="none": jax.nn.gelu(x, approximate=approximate == "tanh"),
    "silu": jax.nn.silu,
    "elu": lambda x, alpha=1.0, scale=1.0, input_scale=1.0: scale * jax.nn.elu(input_scale * x, alpha),
    "leaky_relu": lambda x, slope=0.01: jax.nn.leaky_relu(x, slope),
    "hardtanh": lambda x, low=-1.0, high=1.0: jnp.clip(x, low, high),
    "softplus": lambda x, beta=1.0, threshold=20.0: jax.nn.softplus(beta * x) / beta,
    "_softmax": lambda x, dim, half_to_float: jax.nn.softmax(x, dim),
    "_log_softmax": lambda x, dim, half_to_float: jax.nn.log_softmax(x, dim),
    "view": lambda x, shape: x.reshape(shape),
    "_unsafe_view": lambda x, shape: x.reshape(shape),
    "reshape": lambda x, shape: x.reshape(shape),
    "flatten": lambda x, start=0, end=-1: x.reshape(
        *x.shape[:start], -1, *(() if end in (-1, x.ndim - 1) else x.shape[end + 1 :])
    ),
    "permute": lambda x, dims: jnp.transpose(x, dims),
    "transpose": lambda x, a, b: jnp.swapaxes(x, a, b),
    "t": lambda x: x.T,
    "squeeze": lambda x, dim=None: jnp.squeeze(x, dim if dim is None or isinstance(dim, int) else tuple(dim)),
    "unsqueeze": lambda x, dim: jnp.expand_dims(x, dim),
    "expand": lambda x, shape: jnp.broadcast_to(
        x, [old if new == -1 else new for old, new in zip((1,) * (len(shape) - x.ndim) + x.shape, shape, strict=True)]
    ),
    "cat": lambda parts, dim=0: jnp.concatenate(parts, dim),
    "select": lambda x, dim, index: jax.lax.index_in_dim(x, index, dim, keepdims=False),
    "slice": lambda x, dim=0, start=None, end=None, step=1: x[
        (slice(None),) * (dim % x.ndim) + (slice(start, end, step),)
    ],
    "constant_pad_nd": lambda x, pad, value=0.0: jnp.pad(
        x,
        [(0, 0)] * (x.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1],
        constant_values=value,
    ),
    "clone": lambda x, memory_format=None: x,
    "contiguous": lambda x, memory_format=None: x,
    "alias": lambda x: x,
    "detach": lambda x: x,
    "sym_size": lambda x, dim: x.shape[dim],
    "_assert_scalar": lambda *args, **options: None,
    "_assert_tensor_metadata": lambda *args, **options: None,
}
