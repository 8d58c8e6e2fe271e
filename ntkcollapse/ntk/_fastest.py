"""Which engine is the fastest for a function, by counted work: the same answer on every machine and day."""

from typing import Any

from ntkcollapse._checks import check_choice
from ntkcollapse._platforms import constant
from ntkcollapse.ntk._problem import Problem, one_like
from ntkcollapse.ntk._trace import trace
from ntkcollapse.ntk._uses import Convolution
from ntkcollapse.ntk.engines import ENGINES, Chunks, Engine, Outputs, get_engine
from ntkcollapse.ntk.engines._factors import forming_work, gram_work, pairs_of
from ntkcollapse.ntk.engines._plan import Plan, plan_of
from ntkcollapse.ntk.engines._tiling import Counted, Tile, counted_work, tile_of

AUTO = "auto"


def known(engine: str | Engine) -> str | Engine:
    """The engine of that name, or "auto", for `resolve` to choose once there is something to count.

    Raises:
        ValueError: an unknown name.
        ImportError: neural-tangents where that package is missing.
    """
    if isinstance(engine, str):
        check_choice("engine", engine, (*ENGINES, AUTO))
    return engine if isinstance(engine, str) and engine == AUTO else get_engine(engine)


def resolve(
    engine: str | Engine, problem: Problem, x1: Any, x2: Any, outputs: Outputs | None, available: int
) -> Engine:
    """The engine of that name; for "auto" the one of the least counted work, the first of equals.

    Args:
        x1, x2: samples on both sides, the same ones where x2 is None.
        outputs: of a kernel between samples; None for sums over classes of x1.
        available: bytes for intermediate arrays; where they follow what is free they are others at every call, so that
            all of the same power of two count alike.
    """
    if isinstance(engine, Engine) or engine != AUTO:
        return get_engine(engine)
    works = engine_works(problem, x1, x2, outputs, 2 ** (available.bit_length() - 1))
    for name in sorted(works, key=lambda name: works[name]):
        if name != "ntvp" or _goes_forwards(problem, x1):
            return get_engine(name)
    raise AssertionError("no engine")


def engine_works(problem: Problem, x1: Any, x2: Any, outputs: Outputs | None, available: int) -> dict[str, float]:
    """Counted work of each engine, in multiplications of a matrix product."""
    x, rows, columns = one_like(x1), len(x1), None if x2 is None else len(x2)
    plan = plan_of(problem, x)
    of = plan.counted(problem)
    engines = {name: get_engine(name) for name in ("layerwise", "jacobian", "ntvp")}
    if outputs is None:
        chunks = {name: engines[name].sum_chunks(problem, x, 1, available) for name in ("layerwise", "jacobian")}
        return {name: _sums(name, problem, plan, rows, chunks[name]) for name in chunks}
    K = problem.num_outputs
    chunks = {name: engine.chunks(problem, x, rows, columns, outputs, available) for name, engine in engines.items()}
    return {
        "layerwise": _layerwise(of, chunks["layerwise"], K, rows, columns, outputs),
        "jacobian": _jacobian(problem, plan, chunks["jacobian"], rows, columns, outputs),
        "ntvp": _ntvp(problem, plan, rows, columns),
    }


def _layerwise(of: Counted, chunks: Chunks, K: int, rows: int, columns: int | None, outputs: Outputs) -> float:
    if not chunks.whole:
        return sum(counted_work(of, tile_of(chunks), chunks.blocks, K, rows, columns, outputs))
    tile = Tile(max(rows, columns or 0), 1, K, True, 2**62)
    return counted_work(of, tile, 1, K, rows, columns, outputs).products + constant("call")


def _jacobian(problem: Problem, plan: Plan, chunks: Chunks, rows: int, columns: int | None, outputs: Outputs) -> float:
    A, B = (-(-n // chunks.samples) for n in (rows, columns or rows))
    tiles = A * (A + 1) // 2 if columns is None else A * B
    # A tile of the diagonal has one side.
    passed = (A * A if columns is None else 2 * A * B) * min(chunks.samples, rows)
    products = rows * (columns or rows) * problem.num_params * pairs_of(outputs, problem.num_outputs)
    return passed * _gradients(problem, plan, problem.num_outputs) + products + tiles * constant("call")


def _ntvp(problem: Problem, plan: Plan, rows: int, columns: int | None) -> float:
    """Gradients of one side, each written and read, and pushed through all of the other."""
    gradients = (columns or rows) * problem.num_outputs
    each = plan.forth + plan.back + 2 * constant("traffic") * problem.num_params
    return gradients * (each + 2 * rows * plan.forth) + constant("call")


def _gradients(problem: Problem, plan: Plan, k: int) -> float:
    """Work of k gradients of a sample by JAX's own rules, written and read once."""
    formed = 0
    for product in plan.products:
        work = product.layer.numbers * product.layer.positions
        formed += work * (constant("grouped") if isinstance(product.use, Convolution) else 1)
    return plan.forth + k * (plan.back + formed + 2 * constant("traffic") * problem.num_params)


def _sums(name: str, problem: Problem, plan: Plan, n: int, chunks: Chunks) -> float:
    k = chunks.outputs
    turns = -(-problem.num_outputs // k)
    calls = turns * -(-n // chunks.samples)
    if name == "jacobian":
        return n * turns * _gradients(problem, plan, k) + constant("call") * calls
    formed = sum(min(forming_work(layer, k), _direct(layer, k)) for layer in (p.layer for p in plan.products))
    rest = constant("traffic") * k * plan.explicit(problem)
    calls *= 1 + len(plan.products) + len(plan.rest)
    return n * turns * (plan.forth + k * plan.back + formed + rest) + constant("call") * calls


def _direct(layer, k: int) -> int:
    """Sums of gradients that are not formed: their product with one number a sample, and Grams of a sample."""
    return k * layer.numbers * layer.positions + gram_work(layer, k, "mean")


def _goes_forwards(problem: Problem, x: Any) -> bool:
    """Whether f can be differentiated forwards; a rule of its own may be for backwards alone."""
    return "custom_vjp_call" not in str(trace(problem.f, problem.params, one_like(x))[0])
