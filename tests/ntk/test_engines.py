"""Every engine against dense Jacobians, on every way in which a parameter meets data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkcollapse.ntk import _fastest, _partial, block_statistics, empirical, empirical_ntk
from ntkcollapse.ntk._trace import Traced
from ntkcollapse.ntk.engines import NTVP, Jacobian, Layerwise, _contract, _factors
from ntkcollapse.ntk.engines._engine import Chunks
from tests.ntk.zoo import MAKERS, Case, case, dense_jacobian, dense_ntk, normal
from tests.platforms import as_if


def close(got, want):
    # Sums of at most some thousand float64 products, against another order of summation.
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=1e-12 * np.abs(want).max())


def mean_over_outputs(theta):
    return np.einsum("ijkk->ij", theta) / theta.shape[2]


@pytest.mark.parametrize(
    ("name", "engine"), [*((name, "layerwise") for name in MAKERS), ("plain", "jacobian"), ("unusual", "jacobian")]
)
def test_all_pairs(name, engine):
    c, theta = case(name), dense_ntk(name)
    close(empirical_ntk(c.f, c.params, c.x, engine=engine, outputs="mean"), mean_over_outputs(theta))
    close(empirical_ntk(c.f, c.params, c.x[:3], c.x, engine=engine), theta[:3])


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_kernel_vector_products(name):
    c, theta = case(name), dense_ntk(name)
    close(empirical_ntk(c.f, c.params, c.x[:3], c.x, engine="ntvp"), theta[:3])


@pytest.mark.parametrize("outputs", ["full", "diagonal", "mean"])
def test_neural_tangents(outputs):
    pytest.importorskip("frozendict")
    c, theta = case("plain"), dense_ntk("plain")
    want = {"full": theta, "diagonal": np.einsum("ijkk->ijk", theta), "mean": mean_over_outputs(theta)}
    close(empirical_ntk(c.f, c.params, c.x, engine="neural-tangents", outputs=outputs), want[outputs])


@pytest.mark.parametrize("engine", ["layerwise", "jacobian", "ntvp"])
def test_small_chunks_change_nothing(engine):
    # Memory for about two samples and one output at a time: tiles that overlap, outputs in turns.
    c, theta = case("plain"), dense_ntk("plain")
    options = {"engine": engine, "memory": 6000.0}
    close(empirical_ntk(c.f, c.params, c.x, outputs="diagonal", **options), np.einsum("ijkk->ijk", theta))
    close(empirical_ntk(c.f, c.params, c.x, c.x[:3], outputs="mean", **options), mean_over_outputs(theta)[:, :3])
    close(empirical_ntk(c.f, c.params, c.x, **options), theta)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_outputs_in_tiles(count):
    """Nine outputs, so many at a time: few of them share a forward pass that is held, more of them go again."""

    class Fixed(Layerwise):
        def chunks(self, problem, x, rows, columns, outputs, available):
            return Chunks(samples=4, outputs=count)

    params, x = {"w": normal(0, 6, 5), "v": normal(1, 5, 9), "bias": normal(2, 9)}, normal(3, 6, 6)

    def f(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"] + p["bias"][None, :]

    jacobian = Case(f, params, x).jacobian()
    theta = np.einsum("ikp,jkp->ijk", jacobian, jacobian)
    close(empirical_ntk(f, params, x, engine=Fixed(), outputs="diagonal"), theta)
    close(empirical_ntk(f, params, x, engine=Fixed(), outputs="mean"), theta.mean(2))


@pytest.mark.parametrize("traffic", [0, 10**9])
@pytest.mark.parametrize("outputs", ["full", "diagonal", "mean"])
def test_formed_gradients_and_grams_agree(traffic, outputs, monkeypatch):
    # Both ways to the same inner product, on a product with several groups, positions, inputs and outputs.
    as_if(monkeypatch, traffic=traffic)
    x = _factors.Factors(jnp.asarray(normal(0, 4, 2, 3, 5)), jnp.asarray(normal(1, 4, 2, 3, 3, 2)))
    y = _factors.Factors(jnp.asarray(normal(2, 6, 2, 3, 5)), jnp.asarray(normal(3, 6, 2, 3, 3, 2)))
    g, h = (np.einsum("bgti,bgtko->bkgoi", np.asarray(z.a), np.asarray(z.d)) for z in (x, y))
    theta = np.einsum("akgoi,bsgoi->abks", g, h)
    want = {"full": theta, "diagonal": np.einsum("abkk->abk", theta), "mean": np.einsum("abkk->ab", theta)}
    close(_contract.contract(x.formed(), y.formed(), outputs), want[outputs])
    close(_factors.contract_grams(x, y, outputs), want[outputs])
    # Sums over two groups, of which the second has one sample and one that fills up.
    mask, signs = np.asarray([[1.0, 1.0], [1.0, 0.0]]), normal(4, 4, 2)
    x = x._replace(d=x.d * mask.reshape(-1, 1, 1, 1, 1))
    g = (g.reshape(4, 3, -1) * mask.reshape(-1, 1, 1)).reshape(2, 2, 3, -1)
    part = _factors.sum_factors(x, jnp.asarray(mask), jnp.asarray(signs), pairs=outputs == "full")
    close(part.sums, g.sum(1))
    close(part.signed, np.einsum("bkp,bq->qkp", g.reshape(4, 3, -1), signs))
    apart = g - mask[:, :, None, None] * (g.sum(1) / mask.sum(1)[:, None, None])[:, None]
    scatter = np.einsum("qmkp,qmsp->qks", apart, apart)
    close(part.scatter, scatter if outputs == "full" else np.einsum("qkk->qk", scatter))


def test_what_is_recognised():
    # Nothing here may quietly become slow: matrix products and convolutions are found, through what surrounds them.
    def uses(name):
        c = case(name)
        traced = Traced(c.f, c.params, jax.ShapeDtypeStruct((1, *c.x.shape[1:]), c.x.dtype))
        return sorted(type(t.use).__name__ for t in traced.taps if t.use), sum(k.direct for k in traced.components)

    assert uses("convolutions") == (["Convolution"] * 5 + ["MatrixProduct"], 6)
    assert uses("plain")[0] == ["MatrixProduct"] * 3
    assert uses("attention")[0].count("MatrixProduct") == 5
    assert uses("attention")[0].count("Rows") == 2
    assert uses("normalised")[0].count("Convolution") == 4


def test_part_of_the_parameters():
    c = case("plain")
    names = list(jax.tree.leaves(jax.tree.map_with_path(lambda path, _: path[0].key, c.params)))
    sizes = [leaf.size for leaf in jax.tree.leaves(c.params)]
    ends = np.cumsum(sizes)
    J = dense_jacobian("plain")
    chosen = {"w", "transposed"}
    keep = np.concatenate([np.arange(e - s, e) for n, s, e in zip(names, sizes, ends, strict=True) if n in chosen])
    want = np.einsum("ikp,jsp->ijks", J[:, :, keep], J[:, :, keep])
    close(empirical_ntk(c.f, c.params, c.x, parameters=list(chosen)), want)
    close(empirical_ntk(c.f, c.params, c.x, parameters={name: name in chosen for name in c.params}), want)


def test_works_under_jit_and_grad():
    c, theta = case("plain"), dense_ntk("plain")
    close(jax.jit(lambda p, x: empirical_ntk(c.f, p, x))(c.params, c.x), theta)


def test_stop_and_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(_partial, "_SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(_partial, "_SHARE", np.inf)
    c, theta = case("plain"), dense_ntk("plain")
    calls = []

    class Stopping(Layerwise):
        def against(self, problem, kept, x2, first, outputs, chunks):
            calls.append(None)
            if len(calls) == self.after:
                raise KeyboardInterrupt
            return super().against(problem, kept, x2, first, outputs, chunks)

        after = 4

    def run(x=c.x, f=c.f):
        return empirical_ntk(f, c.params, x, engine=Stopping(), memory=3000.0, checkpoint=tmp_path)

    with pytest.raises(KeyboardInterrupt):
        run()
    with pytest.raises(ValueError, match="another computation"):
        run(x=c.x + 1)
    with pytest.raises(ValueError, match="another computation"):
        run(f=lambda p, x: -c.f(p, x))
    Stopping.after = -1
    calls.clear()
    close(run(), theta)
    resumed = len(calls)
    assert not list(tmp_path.iterdir())
    calls.clear()
    close(run(), theta)
    assert resumed == len(calls) - 3 > 0
    (tmp_path / "kernel.npz").write_bytes(b"half of a file")
    with pytest.raises(ValueError, match="cannot be read"):
        run()
    with pytest.raises(ValueError, match="checkpoint: expected a call outside of `jit`"):
        jax.jit(lambda p: empirical_ntk(c.f, p, c.x, checkpoint=tmp_path))(c.params)


def test_the_engine_of_the_least_work_is_taken(monkeypatch):
    c, theta = case("plain"), dense_ntk("plain")
    asked = []

    def works(problem, x1, x2, outputs, available):
        asked.append((len(x1), x2, outputs))
        return {"layerwise": 3.0, "jacobian": 2.0, "ntvp": 1.0} if outputs else {"layerwise": 3.0, "jacobian": 2.0}

    monkeypatch.setattr(_fastest, "engine_works", works)
    used = []
    for kind in (Jacobian, NTVP):
        kernel = kind.kernel
        monkeypatch.setattr(kind, "kernel", lambda self, *given, k=kernel: used.append(self.name) or k(self, *given))
    close(empirical_ntk(c.f, c.params, c.x, engine="auto"), theta)
    block_statistics(c.f, c.params, c.x, np.asarray([0, 1, 0, 1, 0]), engine="auto")
    assert (asked, used) == ([(5, None, "full"), (5, None, None)], ["ntvp"])
    # A rule of differentiation of its own goes backwards alone.
    c = case("unusual")
    close(empirical_ntk(c.f, c.params, c.x, engine="auto"), dense_ntk("unusual"))
    assert used == ["ntvp", "jacobian"]


@pytest.mark.parametrize("engine", ["layerwise", "jacobian", "ntvp"])
def test_single_precision(engine):
    c, theta = case("plain"), dense_ntk("plain")
    params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (c.params, c.x))
    got = empirical_ntk(c.f, params, x, engine=engine)
    assert got.dtype == jnp.float32
    # Sums of some hundred products of numbers rounded to 6e-8.
    np.testing.assert_allclose(got, theta, rtol=0, atol=3e-6 * np.abs(theta).max())
    found = block_statistics(c.f, params, x, np.asarray([0, 1, 0, 1, 0]), engine=engine)
    assert found.output_pairs.dtype == found.output_diagonal.dtype == np.float64


def test_one_compilation_for_new_parameters():
    traces = []

    def f(params, x):
        traces.append(None)
        return jnp.tanh(x @ params["w"]) @ params["v"]

    params = {"w": normal(0, 3, 4), "v": normal(1, 4, 2)}
    empirical_ntk(f, params, normal(2, 5, 3))
    first = len(traces)
    empirical_ntk(f, jax.tree.map(lambda p: 2 * p, params), normal(3, 5, 3))
    assert len(traces) == first


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    kinds=st.lists(
        st.sampled_from(["dense", "shared", "scale", "skip", "bias", "norm", "einsum"]), min_size=2, max_size=5
    ),
    seed=st.integers(0, 1000),
)
def test_random_networks(kinds, seed):
    params = {"shared": normal(seed, 4, 4)}
    for i, kind in enumerate(kinds):
        shape = {"dense": (4, 4), "scale": (), "bias": (4,), "norm": (4,), "einsum": (2, 4, 4)}.get(kind)
        if shape is not None:
            params[str(i)] = normal(seed + i + 1, *shape)

    def f(p, x):
        h = first = x
        for i, kind in enumerate(kinds):
            own = p.get(str(i))
            if kind == "dense":
                h = jnp.sin(h @ own)
            elif kind == "shared":
                h = jnp.tanh(h @ p["shared"] + first @ p["shared"].T)
            elif kind == "scale":
                h = h * own
            elif kind == "skip":
                h = h + first
            elif kind == "bias":
                h = jax.nn.softplus(h + own[None, :])
            elif kind == "norm":
                h = (h - h.mean(1, keepdims=True)) / jnp.sqrt(1 + jnp.var(h, axis=1, keepdims=True)) * own[None, :]
            else:
                h = jnp.einsum("ni,aij,nj->na", h, own, first)
                h = jnp.concatenate([h, h], axis=1)
        return h[:, :2]

    x = normal(seed + 99, 3, 4)
    J = jax.jacobian(f)(params, x)
    J = np.concatenate([np.asarray(leaf).reshape(3, 2, -1) for leaf in jax.tree.leaves(J)], axis=2)
    want = np.einsum("ikp,jsp->ijks", J, J)
    got = empirical_ntk(f, params, x)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * max(np.abs(want).max(), 1e-300))


def test_a_kernel_is_not_held_twice(monkeypatch):
    made = []
    monkeypatch.setattr(
        empirical, "_zeros", lambda *given, zeros=empirical._zeros: made.append(zeros(*given)) or made[-1]
    )
    c, theta = case("plain"), dense_ntk("plain")
    got = empirical_ntk(c.f, c.params, c.x, outputs="mean")
    assert got.unsafe_buffer_pointer() == made[0].ctypes.data
    close(got, mean_over_outputs(theta))
