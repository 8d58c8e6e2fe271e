"""What is chosen by platform, each with how it was obtained: one table for the CPU, CUDA and TPU."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")

PLATFORMS = ("cpu", "cuda", "tpu")


class Choice(NamedTuple):
    """A number and how it was obtained: "measured", "data sheet" (computed from one), or "unknown" (a guess)."""

    value: float
    how: str


class Constant(NamedTuple):
    """What a number decides, and what it is on each platform."""

    meaning: str
    cpu: Choice
    cuda: Choice
    tpu: Choice


def _measured(value: float) -> Choice:
    return Choice(value, "measured")


def _data_sheet(value: float) -> Choice:
    return Choice(value, "data sheet")


def _unknown(value: float) -> Choice:
    return Choice(value, "unknown")


_MiB, _GiB = 2**20, 2**30

# Data sheets: an H100 SXM does 67 TFLOP/s in float32 and moves 3.35 TB/s; a TPU v5e 197 TFLOP/s in bfloat16, of which
# all digits of float32 take six passes, and 819 GB/s. Writing and reading a float32 are eight bytes.
CONSTANTS: dict[str, Constant] = {
    "most_memory": Constant(
        "bytes for intermediate arrays by default, at most",
        # Larger chunks are not faster on a CPU, they only take more; but for kernels of thousands of samples by large
        # networks. One number all the same: what follows the free memory is cut otherwise at every call.
        *(_measured(512 * _MiB), _unknown(64 * _GiB), _unknown(64 * _GiB)),
    ),
    "free_share": Constant(
        "share of the free memory for intermediate arrays by default",
        *(_unknown(0.25), _unknown(0.25), _unknown(0.25)),
    ),
    "step_bytes": Constant(
        "bytes that one compiled step of a long computation should keep below",
        # The usual allocator of Linux gives memory beyond 32 MiB back to the system at once and gets it page by page
        # the next time, which takes longer than the work in it. Elsewhere memory is kept.
        *(_measured(24 * _MiB), _unknown(512 * _MiB), _unknown(512 * _MiB)),
    ),
    "at_once": Constant(
        "bytes up to which the kernel of all layers is one program",
        *(_measured(256 * _MiB), _unknown(4 * _GiB), _unknown(4 * _GiB)),
    ),
    "together": Constant(
        "bytes of the layers whose products are one program; with 0 each layer is one",
        # On a CPU one program for many layers unfolds the inputs of all of them at once; a launch costs it nothing.
        *(_measured(0), _unknown(4 * _GiB), _unknown(4 * _GiB)),
    ),
    "few": Constant(
        "samples up to which what compiles fast is chosen before what runs fast",
        *(_measured(64), _unknown(64), _unknown(64)),
    ),
    "offsets": Constant(
        "positions of a window from which patches are gathered and not sliced",
        # A gather takes three times as long on a CPU, and a fifth of the time to compile.
        *(_measured(64), _unknown(64), _unknown(64)),
    ),
    "traffic": Constant(
        "multiplications of a matrix product in the time of writing and reading a number of a large array",
        *(_measured(50), _data_sheet(80), _data_sheet(160)),
    ),
    "call": Constant(
        "multiplications of a matrix product in the time of calling one compiled program from Python",
        # A third of a millisecond.
        *(_measured(8e6), _data_sheet(1e10), _data_sheet(5e9)),
    ),
    "narrow": Constant(
        "rows of a matrix at which a product takes twice as long as its multiplications",
        *(_measured(16), _unknown(128), _unknown(128)),
    ),
    "grouped": Constant(
        "how much longer a convolution's gradient takes sample by sample, as a convolution in groups",
        *(_measured(4), _unknown(4), _unknown(4)),
    ),
    "ahead": Constant(
        "pieces of work that are sent to the device before the first is waited for",
        # On a CPU the work would only wait in memory.
        *(_measured(0), _unknown(2), _unknown(2)),
    ),
    "steps": Constant(
        "training steps in one program between two looks at them, at most",
        # One on a CPU, where starting a program costs little, and runs of before end in the same bits.
        *(_unknown(1), _unknown(50), _unknown(50)),
    ),
    "single_run": Constant(
        "multiplications in one evaluation of a flow, below which a single integration runs on the CPU",
        # Some fifty launches of 5 µs each, while two cores multiply some 2e10 times a second.
        *(_unknown(0), _unknown(5e6), _unknown(5e6)),
    ),
    "double": Constant(
        "whether there is double precision in hardware",
        *(_data_sheet(1), _data_sheet(1), _data_sheet(0)),
    ),
}


_AS_ON: list[str] = []


@contextmanager
def as_on(platform: str) -> Iterator[None]:
    """Within it, all is chosen as on that platform."""
    _AS_ON.append(platform)
    try:
        yield
    finally:
        _AS_ON.pop()


def here() -> Any:
    """The device that JAX computes on where nothing else is said."""
    import jax

    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None:
        return jax.local_devices()[0]
    return jax.local_devices(backend=chosen)[0] if isinstance(chosen, str) else chosen


def shared_devices() -> list[Any]:
    """The devices that share what can be shared: all of `jax.devices()`, or the one that `jax.default_device` names."""
    import jax

    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return jax.devices() if chosen is None else [here()]


def platform(device: Any = None) -> str:
    """The column of the table for a device; that of `here` without one."""
    if device is None and _AS_ON:
        return _AS_ON[-1]
    name = (here() if device is None else device).platform
    return name if name in ("cpu", "tpu") else "cuda"


def constant(name: str) -> int:
    """A whole number of the table, on the platform of `here`."""
    return int(number(name))


def number(name: str) -> float:
    """A number of the table, on the platform of `here`."""
    return getattr(CONSTANTS[name], platform()).value


def has_double(platform: str) -> bool:
    """Whether a platform computes in double precision."""
    return bool(getattr(CONSTANTS["double"], platform).value)


def runs_on(platform: str, *, batched: bool, double: bool, work: float) -> str:
    """Where an integration runs beside an accelerator of that platform: there, or on the "cpu".

    Args:
        batched: one of many under `vmap`, or a part of another program.
        double: in double precision.
        work: multiplications in one evaluation of the flow.
    """
    if double and not has_double(platform):
        return "cpu"
    return platform if batched or work >= getattr(CONSTANTS["single_run"], platform).value else "cpu"


def device_named(device: Any) -> Any:
    """A device, or the first one of the platform of that name.

    Raises:
        ValueError: no such platform here.
    """
    import jax

    if not isinstance(device, str):
        return device
    try:
        return jax.local_devices(backend=device)[0]
    except RuntimeError as error:
        raise ValueError(f"device: expected a platform that is here, got {device!r}: {error}") from None


def moved(tree: Any, device: Any) -> Any:
    """The arrays of a pytree on a device, as free to go elsewhere as if they had been made there."""
    import jax
    import numpy as np

    def one(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.device_put(np.asarray(jax.random.key_data(leaf)))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(leaf))

    with jax.default_device(device):
        return jax.tree.map(one, tree)


def behind(results: Iterable[_T]) -> Iterator[_T]:
    """Results of work as it is sent to the device, each given once `ahead` more have been sent after it.

    What is made of a result on the host, where it has to be waited for, then stops the device no more.
    """
    ahead, waiting = constant("ahead"), []
    for result in results:
        waiting.append(result)
        if len(waiting) > ahead:
            yield waiting.pop(0)
    yield from waiting


def as_markdown() -> str:
    """The table as docs/accelerators.md has it."""

    def said(choice: Choice) -> str:
        value = choice.value
        for unit, size in (("GiB", _GiB), ("MiB", _MiB)):
            if value and value % size == 0:
                return f"{value / size:g} {unit}, {choice.how}"
        return f"{value:,.0f}, {choice.how}" if value >= 1e4 else f"{value:g}, {choice.how}"

    lines = [["", "CPU", "CUDA", "TPU"], ["---"] * 4]
    lines += [[c.meaning, *map(said, (c.cpu, c.cuda, c.tpu))] for c in CONSTANTS.values()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
