"""How the kernel of many samples is cut into tiles: the least counted work within the counted bytes."""

from collections.abc import Sequence
from math import isqrt, prod
from typing import Literal, NamedTuple

from ntkcollapse._platforms import constant
from ntkcollapse.ntk._memory import evened, fit, step
from ntkcollapse.ntk.engines._contract import Outputs, kernel_shape
from ntkcollapse.ntk.engines._engine import Chunks
from ntkcollapse.ntk.engines._factors import Layer, forming_work, gram_numbers, gram_work, pairs_of

# What is kept of a parameter: its gradients, or inputs and cotangents, of which gradients are formed again and again,
# or only Grams.
Way = Literal["gradients", "factors", "grams"]

# Eighths of the memory for what is kept and for what is only being made. The rest is for what no plan knows: compiled
# code, and what the allocator of the system keeps of arrays that are gone.
_KEPT, _MADE = 5, 2
# Totals of a tile: as they are, and what is added to them.
_COPIES = 2


class Counted(NamedTuple):
    """What of a function costs time and memory.

    layers: each with the number of parameters of that kind; explicit: numbers of the gradient of an output that are in
    no layer; forth, back: work of a forward pass of a sample, and of the way back from each of its outputs; forward,
    backward: bytes of these; item: bytes of a number.
    """

    layers: tuple[tuple[Layer, int], ...]
    explicit: int
    forth: int
    back: int
    forward: int
    backward: int
    item: int


class Tile(NamedTuple):
    """Samples of a block, in so many pieces; outputs; whether gradients are kept wherever formed; bytes of a step."""

    block: int
    pieces: int
    outputs: int
    formed: bool
    step: int

    @property
    def piece(self) -> int:
        """Samples of a piece."""
        return -(-self.block // self.pieces)


def tile_of(chunks: Chunks) -> Tile:
    """The tile that these chunks stand for."""
    return Tile(chunks.samples, chunks.pieces, chunks.outputs, chunks.formed, _step(chunks.working))


def _step(made: int) -> int:
    """Bytes of one step: half of what is only being made, of which gradients beside it have the other half."""
    return min(step(), made // 2)


def way(layer: Layer, tile: Tile, outputs: Outputs, item: int) -> Way:
    """What is kept of a parameter."""
    b, p, k = tile.block, tile.piece, tile.outputs
    formed = 2 * b * forming_work(layer, k) + b * b * layer.numbers * pairs_of(outputs, k)
    fits = p * p * gram_numbers(layer, k, outputs) <= max(tile.step // item, p * k * layer.numbers)
    if fits and b * b * gram_work(layer, k, outputs) < formed:
        return "grams"
    return "gradients" if tile.formed or k * layer.numbers <= layer.factors(k) else "factors"


def parts(layer: Layer, way: Way, tile: Tile, outputs: Outputs, item: int) -> int:
    """In how many equal parts, of whole pieces, a block is compared: as few as one step takes."""
    if way == "gradients":
        return 1
    k = tile.outputs
    if way == "grams":
        most = isqrt(tile.step // (gram_numbers(layer, k, outputs) * item))
    else:
        most = tile.step // (layer.groups * layer.positions * (layer.inputs + 2 * k * layer.outputs) * item)
    least = -(-tile.block // max(most, 1))
    return min((n for n in range(least, tile.pieces) if tile.pieces % n == 0), default=tile.pieces)


class Total(NamedTuple):
    """Work of a kernel in multiplications: in products of matrices and what feeds them, and in calls of programs."""

    products: float
    calls: float


def counted_work(
    of: Counted, tile: Tile, blocks: int, num_outputs: int, rows: int, columns: int | None, outputs: Outputs
) -> Total:
    """Work of a whole kernel of which so many blocks are kept at a time, in multiplications."""
    b, k = tile.block, tile.outputs
    A, B = -(-rows // b), -(-(columns or rows) // b)
    ends = [min(start + blocks, A) for start in range(0, A, blocks)]
    # Blocks that pass, pairs of blocks, and blocks whose gradients are formed of what is kept.
    if columns is None:
        passes, pairs = A + sum(B - end for end in ends), A * (A + 1) // 2
        again = A + sum((B - end) * (1 + end - n * blocks) for n, end in enumerate(ends))
    else:
        passes, pairs, again = A + len(ends) * B, A * B, len(ends) * B + A * B
    products = pairs * b * b * (1 + constant("narrow") / b)
    work = passes * b * (of.forth + k * of.back) + products * of.explicit * pairs_of(outputs, k)
    calls = passes * (3 + tile.pieces) + pairs
    for layer, count in of.layers:
        kept = way(layer, tile, outputs, of.item)
        n = parts(layer, kept, tile, outputs, of.item)
        if kept == "grams":
            work += count * products * gram_work(layer, k, outputs)
            calls += count * (passes * (tile.pieces > 1) + pairs * (n**2 if n > 1 else 0))
            continue
        formed = passes if kept == "gradients" else again
        work += count * (products * layer.numbers * pairs_of(outputs, k) + formed * b * forming_work(layer, k))
        joined = passes * (tile.pieces > 1)
        calls += count * (joined + (passes * tile.pieces if kept == "gradients" else again * n + pairs * n**2))
    turns = -(-num_outputs // k)
    return Total(turns * work, turns * constant("call") * calls)


def tiling(of: Counted, num_outputs: int, rows: int, columns: int | None, outputs: Outputs, available: int) -> Chunks:
    """Chunks of the least counted work.

    As many blocks are kept as fit, as gradients or as what these are formed of, and the others pass by, so that each
    sample passes once for every row of tiles. With fewer outputs at a time rows are longer, but forward passes and
    what all outputs share are made more often.
    """
    room, made = _KEPT * available // 8, _MADE * available // 8
    most = max(rows, columns or 0)
    best, least = None, float("inf")
    for k in [num_outputs] if outputs == "full" else _turns(num_outputs):
        piece = min(_piece(of, k, _step(made)), fit(made, of.forward + k * of.backward, most))
        total = _COPIES * of.item * kernel_shape(outputs, 1, 1, k)[-1] ** (2 if outputs == "full" else 1)
        for size in _sizes(most, piece):
            pieces = -(-size // piece)
            block = pieces * -(-most // (-(-most // size) * pieces))
            for formed in (False, True):
                tile = Tile(block, pieces, k, formed, _step(made))
                ways: list[Way] = [way(layer, tile, outputs, of.item) for layer, _ in of.layers]
                fits = _compared(of, tile, ways, outputs) <= made
                blocks = _blocks(tile, _kept(of, k, ways), total, rows, columns, room) if fits else 0
                if not blocks and (size > 1 or best is not None):
                    continue
                blocks = evened(-(-rows // block), max(blocks, 1))
                work = sum(counted_work(of, tile, blocks, num_outputs, rows, columns, outputs))
                if work < least:
                    best, least = Chunks(block, k, False, blocks, pieces, formed, made), work
                if "factors" not in ways:
                    break
    assert best is not None
    return best


def _kept(of: Counted, k: int, ways: Sequence[Way]) -> int:
    """Bytes of a sample that is kept."""
    numbers = k * of.explicit
    for (layer, count), kept in zip(of.layers, ways, strict=True):
        numbers += count * (k * layer.numbers if kept == "gradients" else layer.factors(k))
    return numbers * of.item


def _compared(of: Counted, tile: Tile, ways: Sequence[Way], outputs: Outputs) -> int:
    """Bytes of a comparison of two blocks as a whole: all Grams, and what each product adds to the kernel."""
    k, numbers = tile.outputs, 0
    for (layer, count), kept in zip(of.layers, ways, strict=True):
        grams = kept == "grams" and parts(layer, kept, tile, outputs, of.item) == 1
        held = gram_numbers(layer, k, outputs) if grams else 0
        numbers += count * (held + prod(kernel_shape(outputs, 1, 1, k)) * (grams or kept == "gradients"))
    return tile.block**2 * numbers * of.item


def _blocks(tile: Tile, each: int, total: int, rows: int, columns: int | None, room: int) -> int:
    """How many blocks can be kept while one more passes by, each sample and each pair of them of so many bytes."""
    block, pair, number = tile.block * each, tile.block**2 * total, -(-rows // tile.block)
    if columns is not None:
        return min(number, max(0, room - block) // max(block + pair, 1))
    if number * block + number**2 * pair <= room:
        return number
    # n block + n² pair, of the samples of a row with themselves.
    return max(0, (isqrt(block**2 + 4 * pair * max(room - block, 0)) - block) // max(2 * pair, 1))


def _piece(of: Counted, k: int, most: int) -> int:
    """Samples whose inputs and cotangents at any one layer fit into one step."""
    numbers = [u.groups * u.positions * (u.inputs + 2 * k * u.outputs) for u, _ in of.layers]
    return max(1, most // (max(numbers, default=1) * of.item))


def _turns(num_outputs: int) -> list[int]:
    """Numbers of outputs at a time; few of them are tried where there are many."""
    turns, found = 1, []
    while turns < num_outputs:
        found.append(-(-num_outputs // turns))
        turns = max(turns + 1, turns * 5 // 4)
    return list(dict.fromkeys([*found, 1]))


def _sizes(most: int, piece: int) -> list[int]:
    """Samples of a block: equal parts of all, powers of two, and whole pieces."""
    sizes = {-(-most // n) for n in range(1, 13)} | {2**i for i in range(most.bit_length())}
    return sorted(size for size in sizes | {n * piece for n in (1, 2, 3, 4, 6, 8, 16)} if size <= most)
