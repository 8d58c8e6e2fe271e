"""What is said of accelerators: tables are made of results and of counts, and empty where there are none."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import _platforms
from ntkcollapse.ntk import block_statistics_cost
from ntkcollapse.ntk.cost import _counted

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "accelerators.md").read_text()


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accelerator", ROOT / "benchmarks" / "accelerator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_constants_are_those_of_the_page():
    (said,) = re.findall(r"<!-- constants -->\n\n(.*?)\n\n<!-- end -->", DOCS, flags=re.DOTALL)
    assert said == _platforms.as_markdown()


def test_tables_are_made_of_results(benchmark):
    empty = benchmark.tables({})
    rows = [line for line in empty.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) > 15
    assert not re.search(r"\| [\d.,]+ \|", empty), "nothing is filled in that was not measured"
    result = {"size": "full", "device": "D", "jax": "J", "python": "P", "result": {"60000": {"warm_s": 12.3}}}
    measured = benchmark.tables({"gamma": result})
    assert "| γ of ResNet20, 60,000 images | 12.3 |  |" in measured
    assert measured.startswith("D, jax J, Python P")
    assert benchmark.tables({"gamma": result | {"size": "toy"}}) == empty
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    assert results.count(benchmark.BEGIN) == results.count(benchmark.END) == 1


def test_operations_are_counted():
    A, B = jnp.ones((4, 5), jnp.float32), jnp.ones((5, 6), jnp.float32)

    def of(f, *arguments):
        return _counted(jax.make_jaxpr(f)(*arguments).jaxpr)

    assert of(lambda a, b: jnp.tanh(a @ b) + 1, A, B) == (2 * 4 * 5 * 6, 4 * (4 * 5 + 5 * 6 + 4 * 6), 1)
    scanned = of(lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), 0, None, length=7), A, B)
    assert scanned[0] == 7 * 2 * 4 * 5 * 6
    either = of(lambda a, b: jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.ones((4, 6), jnp.float32)), A, B)
    assert either[0] == 2 * 4 * 5 * 6
    image, kernel = jnp.ones((2, 8, 8, 4), jnp.float32), jnp.ones((3, 3, 2, 6), jnp.float32)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 2}
    convolved = of(lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", **options), image, kernel)
    # Each of 2 · 8 · 8 · 6 results is a sum over 3 · 3 positions and the two channels of its group.
    assert convolved[0] == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)


def test_cost_of_statistics():
    """Passes of a linear network counted by hand, and linear in the number of samples."""
    d, K, n = 50, 3, 40
    params = {"w": np.ones((d, K), np.float32)}
    cost = {
        N: block_statistics_cost(lambda p, x: x @ p["w"], params, np.ones((1, d), np.float32), N, 2, memory=1e9)
        for N in (n, 4 * n)
    }
    one, four = cost.values()
    # The way there is one product, and sums of gradients over classes are at least as many operations an output.
    assert 2 * n * d * K < one.operations < 6 * n * d * K * K
    assert four.operations == pytest.approx(4 * one.operations, rel=0.3)
    assert one.fetched == 4 * (2 * K * d * K + 2 + 2 * K)
    assert one.seconds(flops=1e3, bandwidth=1.0, launch=0.5)["launches"] == one.launches / 2
    with pytest.raises(ValueError, match="platform: expected one of 'cpu', 'cuda', 'tpu'; got 'gpu'"):
        block_statistics_cost(
            lambda p, x: x @ p["w"], params, np.ones((1, d), np.float32), n, 2, memory=1e9, platform="gpu"
        )
    assert _platforms.platform() == "cpu"


@pytest.mark.slow
def test_costs_are_those_of_the_page(benchmark):
    counts, bounds = benchmark.on_paper().split("\n\n")
    assert f"<!-- counts -->\n\n{counts}\n" in DOCS
    assert f"<!-- bounds -->\n\n{bounds}\n" in DOCS
