"""A measured kernel on the directions that class indicators reach, and one rate for the rest: no N² numbers."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse._arrays import as_array, module_of
from ntkcollapse._checks import (
    check_arrays,
    check_finite,
    check_number,
    check_positive,
    check_shape,
    check_whole,
    is_traced,
)
from ntkcollapse.classes import Classes, as_classes
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.sample_kernel import DenseKernel, SampleKernel


class _Products:
    """K as products on the host: X (N, k) ↦ K X, the trace where it is at hand, and the products' rounding unit."""

    trace: float | None

    def __init__(self, operator: Any, classes: Classes):
        self.N, self.trace, self.eps = classes.num_samples, None, float(np.finfo(float).eps)
        if isinstance(operator, SampleKernel) and not isinstance(operator, DenseKernel):
            self._product = lambda X: operator.mv(jnp.asarray(X.T), classes).T
        else:
            self._product = self._product_of(operator.matrix if isinstance(operator, DenseKernel) else operator)

    def _product_of(self, operator: Any) -> Callable:
        """X ↦ K X of a matrix, a linear operator or a function."""
        shape, many = getattr(operator, "shape", None), getattr(operator, "matmat", None)
        if many is None and not callable(operator):
            if len(shape or ()) != 2:
                raise TypeError(
                    "operator: expected a matrix, a kernel, an NTKOperator or a function X (N, k) -> K X, got "
                    f"{type(operator).__name__}."
                )
            check_shape("operator", operator, (self.N, self.N), f"(N, N) for the N = {self.N} samples of classes")
            K = np.asarray(DenseKernel(operator).matrix)
            self.trace = float(np.trace(K, dtype=float))
            return lambda X: K @ X.astype(K.dtype)
        if shape is None:
            return operator
        if tuple(shape) not in ((self.N,), (self.N, 1), (self.N, self.N)):
            raise ValueError(
                f"operator: expected one number for each of the N = {self.N} samples of classes, got an operator on "
                f"{tuple(shape)}; NTKOperator(..., outputs='mean') is the kernel averaged over outputs."
            )
        if many is not None:
            return (lambda X: many(X[:, None])[:, 0]) if tuple(shape) == (self.N, 1) and self.N > 1 else many
        return lambda X: np.stack([np.reshape(np.asarray(operator(x.reshape(shape))), -1) for x in X.T], axis=1)

    def __call__(self, X: np.ndarray) -> np.ndarray:
        out = self._product(X)
        check_shape("operator", out, X.shape, f"K X for X of shape {X.shape}")
        check_finite("operator", out)
        out = np.asarray(out)
        if np.issubdtype(out.dtype, np.floating):
            self.eps = float(np.finfo(out.dtype).eps)
        return out.astype(float)


class KrylovKernel(SampleKernel):
    r"""A kernel between few directions of sample space, and one rate λ for all that is orthogonal to them.

        K = U T Uᵀ + λ (I − U Uᵀ),   U = [Z D^(−1/2), V],   Uᵀ U = I,   T = Uᵀ K U

    The class indicators Z lie in the span of U, so that labels and bias do: class means, the coefficients H V of the
    features and a propagator of the rest form a closed system, whatever N. `KrylovKernel.of` makes U by block Lanczos
    from the indicators,

        K Q_j = Q_(j−1) B_jᵀ + Q_j A_j + Q_(j+1) B_(j+1),   Q_0 = Z D^(−1/2),   V = [Q_1, ..., Q_q]:

    the directions through which class means and deviations within classes drive each other, C a block. q = 0 is
    a matrix of class pairs with one rate within classes; with as many blocks as there is room for it is K itself.

    Args:
        basis: V, orthonormal columns that sum to zero over every class, (N, K).
        matrix: T, symmetric positive definite, (C + K, C + K).
        rates: λ, of what is orthogonal to U, (1,); and then of each group that `with_groups` makes, (G,).
        residual: ‖(I − U Uᵀ) K U‖₂ = ‖B_(q+1)‖₂, how strongly the directions drive the rest; NaN where not known.
        rest: orthonormal columns of the groups, orthogonal to U, (N, L), none by default.
        bounds: where the groups begin and end among them, G numbers from 0 to L.

    Raises:
        ValueError: shapes that disagree, or numbers that are not real, masked or not finite.

    References:
        Golub & Underwood (1977), The block Lanczos method for computing eigenvalues.
        Golub & Meurant (1994), Matrices, moments and quadrature.

    >>> classes = Classes.balanced(num_classes=3, per_class=4)
    >>> A = np.random.default_rng(0).normal(size=(12, 20))
    >>> kernel = KrylovKernel.of(A @ A.T, classes, blocks=2)
    >>> kernel.matrix.shape, kernel.basis.shape
    ((9, 9), (12, 6))
    """

    basis: Float[Array, "N K"]
    matrix: Float[Array, "R R"]
    rates: Float[Array, " G"]
    residual: Float[Array, ""]
    rest: Float[Array, "N L"]
    bounds: tuple[int, ...] = eqx.field(static=True)
    reducible: ClassVar[bool] = True

    def __init__(self, basis, matrix, rates, residual=np.nan, rest=None, bounds=(0,)):
        rest = np.zeros((np.shape(basis)[0], 0)) if rest is None and np.ndim(basis) else rest
        check_arrays(basis=basis, matrix=matrix, rates=rates, rest=rest)
        self.basis, self.matrix, self.residual = (as_array(x) for x in (basis, matrix, residual))
        self.rates = jnp.atleast_1d(as_array(rates))
        self.rest, self.bounds = as_array(np.asarray(0.0) if rest is None else rest), tuple(bounds)

    def __check_init__(self):
        for name in ("basis", "matrix", "rates", "rest"):
            check_finite(name, getattr(self, name))
        check_shape("basis", self.basis, (None, None), "(N samples, K directions)")
        R = self.matrix.shape[0] if self.matrix.ndim else 0
        check_shape("matrix", self.matrix, (R, R), "(C + K, C + K) for C classes and K directions")
        groups = len(self.bounds)
        check_shape("rates", self.rates, (groups,), "one rate for what is orthogonal to the directions, one a group")
        check_shape("rest", self.rest, (self.basis.shape[0], self.bounds[-1]), "the groups' directions, as bounds say")
        if R - self.basis.shape[1] < 2:
            raise ValueError(
                f"matrix: expected C + {self.basis.shape[1]} rows for at least C = 2 classes and as many further ones "
                f"as basis has columns, got {R}."
            )

    @classmethod
    def of(
        cls,
        operator: Any,
        classes: Classes,
        *,
        blocks: int,
        trace: float | None = None,
        seed: int = 0,
    ) -> "KrylovKernel":
        """The kernel on the block Krylov space of the class indicators, from products with K alone.

        (1 + blocks) products of K with C vectors, and one more where the trace is not known; 2 (2 + blocks) C N numbers
        of memory, with full reorthogonalisation. Directions that are rounding alone are left out, so that there may be
        fewer than C blocks.

        Args:
            operator: K on samples in class order: a matrix, a `SampleKernel`, an `ntk.NTKOperator` with
                outputs="mean", a linear operator of SciPy, or a function X (N, k) ↦ K X.
            classes: behind the samples.
            blocks: q, blocks of at most C directions beside the indicators.
            trace: Σ_i K_ii, where it is known. λ is the mean of the rest's eigenvalues: from the trace of a matrix or
                from this, and otherwise from C random vectors that are orthogonal to the directions.
            seed: of those vectors.

        Raises:
            ValueError: more blocks than N − C directions fill; products of another shape or not finite; an operator
                that is not symmetric, or not positive on the directions or on the rest, with its eigenvalue.
            TypeError: an operator of another kind.

        Warns:
            UserWarning: directions that keep less than half of the digits when they are made orthogonal.
        """
        U, images, _, product, classes = _of_indicators(operator, classes, blocks)
        return cls._measured(U, images, product, classes, product.trace if trace is None else trace, seed)

    @classmethod
    def for_flow(
        cls,
        operator: Any,
        start: LastLayer,
        classes: Classes,
        time: float,
        *,
        resolvents: int = 3,
        tolerance: float = 1e-3,
        trace: float | None = None,
        seed: int = 0,
    ) -> "KrylovKernel":
        r"""The kernel on the few directions that the flow from a start takes until a time: resolvents, not powers of K.

            U = orth [S, (K + s_0)⁻¹ S, ..., (K + s_(m−1))⁻¹ S],   S = [Z, R_0ᵀ],   s_k = 4^k / (w t),   w = ‖W‖₂²

        with R_0 = W H + b 1ᵀ − Y the residual at the start: at most 2 C (1 + m) directions. Under a W at rest labels
        and residual decay by e^(−w K t); powers of K need √t blocks for it, resolvents log t, whatever the spectrum.
        R_0 has the slow directions within classes that indicators do not reach. T and λ are those of `of`.

        The resolvents are taken within block Lanczos from S, as deep as the slowest of them needs: 2 C products with a
        vector a block, and memory for two vectors of N numbers each.

        Args:
            operator: K, as for `of`.
            start: where the flow starts; its W is not zero.
            classes: behind the samples.
            time: t, how long the flow runs, in its own time (of a loss with a scale: times that scale).
            resolvents: m.
            tolerance: ‖(K + s_0) X − S‖₂, relative to S with orthonormal columns, at which block Lanczos ends.
            trace, seed: as for `of`.

        Raises:
            ValueError: a time or a tolerance that is not above zero, a number of resolvents that is not whole, a W of
                zeros, a start of another shape, and as `of`.

        Warns:
            UserWarning: as `of`.

        References:
            van den Eshof & Hochbruck (2006), Preconditioning Lanczos approximations to the matrix exponential; Güttel
            (2013), Rational Krylov approximation of matrix functions.

        >>> import numpy as np
        >>> classes = Classes.balanced(num_classes=3, per_class=20)
        >>> A, H, W = (np.random.default_rng(0).normal(size=size) for size in ((60, 90), (5, 60), (3, 5)))
        >>> kernel = KrylovKernel.for_flow(A @ A.T, LastLayer(H, W, np.zeros(3)), classes, 0.1, resolvents=2)
        >>> kernel.matrix.shape
        (18, 18)
        """
        check_positive("time", time)
        check_positive("tolerance", tolerance)
        check_whole("resolvents", resolvents)
        classes = as_classes(classes)
        start.check(classes)
        H, W, b = (np.asarray(x, dtype=float) for x in (start.H, start.W, start.b))
        speed = float(np.linalg.norm(W, 2)) ** 2
        if not speed:
            raise ValueError(
                "start: expected a classifier W that is not zero, whose square is what K is multiplied by, got zeros; "
                "start a little later."
            )
        shifts, product = 4.0 ** np.arange(resolvents) / (speed * time), _Products(operator, classes)
        Z = _indicators(classes)
        first = np.concatenate([Z, _beside(Z, (W @ H + b[:, None] - np.asarray(classes.Y)).T)], axis=1)
        S = np.eye(len(Z), first.shape[1])

        def resolvent(T, shift):
            return np.linalg.solve(T + shift * np.eye(len(T)), S[: len(T)])

        def enough(U, images, width):
            left_out = images[:, -width:] - U @ (U.T @ images[:, -width:])
            return np.linalg.norm(left_out @ resolvent(U.T @ images, shifts[0])[-width:], 2) <= tolerance

        U, images, _ = _lanczos(first, product, len(Z), enough)
        T = U.T @ images
        T, kept = (T + T.T) / 2, S[: len(T)]
        for shift in shifts:
            kept = np.concatenate([kept, _beside(kept, resolvent(T, shift))], axis=1)
        trace = product.trace if trace is None else trace
        if trace is None:
            trace = np.trace(T) + (len(U) - len(T)) * _mean_rate(U, T, product, None, classes, seed)
        return cls._measured(U @ kept, images @ kept, product, classes, trace, seed)

    @classmethod
    def ends_of(
        cls,
        operator: Any,
        classes: Classes,
        *,
        blocks: int,
        node: float | None = None,
        trace: float | None = None,
        seed: int = 0,
    ) -> "tuple[KrylovKernel, KrylovKernel]":
        r"""`of`, and the kernel that the same products give at the other end: how far what is left out may reach.

        The second one adds the next block of directions, whose coupling B_(q+1) is known already, and the corner

            A = a I + B_(q+1) (T − a I)⁻¹ B_(q+1)ᵀ

        with which a is an eigenvalue, once for each direction of the block: the rules of Gauss and of Gauss-Radau. For
        a below all eigenvalues of K they enclose what the flow under K does to labels, in the mean over any window
        e^(−st), s ≥ 0,

            Zᵀ (K_Gauss + s)⁻¹ Z ≤ Zᵀ (K + s)⁻¹ Z ≤ Zᵀ (K_Radau + s)⁻¹ Z,   (K + s)⁻¹ = ∫ e^(−st) e^(−Kt) dt,

        as quadratic forms. Along the gradient flow of H and W, where this is no theorem, `comparison.krylov_error`
        takes the distance of what the two predict for an estimate of the first one's error.

        Args:
            node: a. Half of the smaller of λ and the smallest eigenvalue of T by default, where ends are near to each
                other; towards 0 for the widest.

        Other arguments, errors and warnings are those of `of`.
        """
        U, images, block, product, classes = _of_indicators(operator, classes, blocks)
        first = cls._measured(U, images, product, classes, product.trace if trace is None else trace, seed)
        more = _next_block(U, images, block.shape[1], product.eps, blocks + 1) if block.shape[1] else block
        rest = U.shape[0] - U.shape[1]
        if not more.shape[1]:
            return first, first
        T, rate = np.asarray(first.matrix, dtype=float), float(first.rates[0])
        smallest = float(np.linalg.eigvalsh(T)[0])
        a = min(rate, smallest) / 2 if node is None else node
        check_number("node", a)
        if not 0 < a < smallest:
            raise ValueError(
                f"node: expected one between 0 and the smallest eigenvalue on the directions, {smallest:.4g}, got {a}."
            )
        B, identity = more.T @ images, np.eye(more.shape[1])
        corner = a * identity + B @ np.linalg.solve(T - a * np.eye(len(T)), B.T)
        left = rest - len(corner)
        rate = (rest * rate - np.trace(corner)) / left if left else rate
        _check_positive_on("what is orthogonal to one block more (its mean)", rate)
        matrix = np.block([[T, B.T], [B, (corner + corner.T) / 2]])
        basis = np.concatenate([U[:, classes.num_classes :], more], axis=1)
        return first, cls(basis, matrix, np.array([rate]))

    def of_same_directions(
        self, operator: Any, classes: Classes, *, trace: float | None = None, seed: int = 0
    ) -> "KrylovKernel":
        """Another kernel on these directions, T = Uᵀ K U: the links of a path of kernels share their directions.

        Arguments and errors are those of `of`.
        """
        classes = as_classes(classes)
        self.check(classes)
        U = np.concatenate([_indicators(classes), np.asarray(self.basis, dtype=float)], axis=1)
        product = _Products(operator, classes)
        return self._measured(U, product(U), product, classes, product.trace if trace is None else trace, seed)

    def with_groups(
        self, operator: Any, state: LastLayer, classes: Classes, *, groups: int, products: int = 2
    ) -> "KrylovKernel":
        """The same on its directions, with what the features of a state have beside them in groups of a rate each.

        Block Lanczos from H (I − U Uᵀ), `products` products of K with its n columns, gives Ritz vectors; they are put
        in groups of neighbouring values with as much of ‖W H‖² in each, and the mean value, so weighted, as its rate.
        What no group holds has its mean eigenvalue. It takes out the error that one rate
        makes in R_single, once blocks have the coupling; n × n numbers of the state a group.

        Args:
            operator: K, as for `of`.
            state: where the flow starts.
            classes: behind the samples.
            groups: how many at most.
            products: how many of K with the columns of H.

        Raises:
            ValueError: numbers that are not whole and above zero, and as `of`.
        """
        check_whole("groups", groups)
        check_whole("products", products)
        classes = as_classes(classes)
        self.check(classes)
        state.check(classes)
        product, H = _Products(operator, classes), np.asarray(state.H, dtype=float)
        U = np.concatenate([_indicators(classes), np.asarray(self.basis, dtype=float)], axis=1)
        span, images, columns = U, np.zeros((len(U), 0)), H.T
        for _ in range(products):
            block = _beside(span, columns)
            columns = product(block)
            span, images = np.concatenate([span, block], axis=1), np.concatenate([images, columns], axis=1)
        new = span[:, U.shape[1] :]
        if not new.shape[1]:
            return self
        T = new.T @ images
        values, vectors = np.linalg.eigh((T + T.T) / 2)
        _check_positive_on("what the features have beside the directions", values[0], 2 * product.eps * values[-1])
        new = new @ vectors
        energy = np.sum((np.asarray(state.W, dtype=float) @ H @ new) ** 2, axis=0) + np.finfo(float).tiny
        group = np.searchsorted(np.arange(1, groups) / groups, (np.cumsum(energy) - energy / 2) / energy.sum())
        kept, starts = np.unique(group, return_index=True)
        left, rate = len(U) - span.shape[1], float(self.rates[0])
        if left:
            rate = (rate * (len(U) - U.shape[1]) - values.sum()) / left
            _check_positive_on("what no group holds (its mean)", rate)
        rates = [rate, *(np.average(values[group == g], weights=energy[group == g]) for g in kept)]
        bounds = (*(int(i) for i in starts), new.shape[1])
        return KrylovKernel(self.basis, self.matrix, np.array(rates), float(self.residual), new, bounds)

    @classmethod
    def _measured(cls, U, images, product: _Products, classes: Classes, trace, seed) -> "KrylovKernel":
        """The kernel on the span of U, from its images K U."""
        if trace is not None:
            check_number("trace", trace)
        T = U.T @ images
        asymmetry = np.abs(T - T.T).max() / np.abs(T).max() if T.any() else 0.0
        if asymmetry > 1e-4:
            raise ValueError(
                f"operator: expected a symmetric kernel, got a relative asymmetry of {asymmetry:.1g} on its "
                "directions; rows and columns must be the same samples in the same order."
            )
        T = (T + T.T) / 2
        values = np.linalg.eigvalsh(T)
        _check_positive_on("the directions", values[0], rounding=2 * product.eps * values[-1])
        rest = images - U @ (U.T @ images)
        rate = _mean_rate(U, T, product, trace, classes, seed)
        _check_positive_on("what is orthogonal to the directions (its mean)", rate)
        return cls(U[:, classes.num_classes :], T, np.array([rate]), float(np.linalg.norm(rest, 2)))

    def extended(self, rows: Any, classes: Classes) -> Float[Array, "M R"]:
        """Class indicators and directions as functions of a sample, K(x, X) U T⁻¹: Nyström's extension.

        On the samples themselves it is U, but for what the directions leave out: that of the last block is off by
        B_(q+1) T⁻¹. The C indicators come first, at length 1, that is 1/√m_c on the samples of a class.

        Args:
            rows: K(x, X) between M further samples and the N of classes: a matrix (M, N), or an operator with its
                products, as `ntk.NTKOperator(f, params, x, X, outputs="mean")` has.
            classes: behind X.
        """
        U = jnp.concatenate([jnp.asarray(_indicators(classes), self.matrix.dtype), self.basis], axis=1)
        many = getattr(rows, "matmat", None)
        if many is None:
            check_shape("rows", rows, (None, classes.num_samples), "kernel values (M, N) with the samples of classes")
            many = jnp.asarray(rows).__matmul__
        return jnp.linalg.solve(self.matrix, jnp.asarray(many(U), self.matrix.dtype).T).T

    @property
    def num_directions(self) -> int:
        return self.basis.shape[-1]

    def directions(self, classes):
        del classes
        return self.basis

    def check(self, classes):
        N, C = classes.num_samples, classes.num_classes
        check_shape("basis", self.basis, (N, None), f"(N, K) for the N = {N} samples of classes")
        if self.matrix.shape[0] - self.num_directions != C or not _sums_vanish(self.basis, classes):
            raise ValueError(
                "kernel: expected directions that sum to zero over each of these classes, got those of other classes; "
                "make the kernel on the classes that it is used with."
            )
        super().check(classes)

    def mv(self, X, classes):
        return self._applied(X, classes, self.matrix, self.rates)

    def solve(self, X, classes):
        xp: Any = module_of(self)
        return self._applied(X, classes, xp.linalg.inv(xp.asarray(self.matrix)), 1 / xp.asarray(self.rates))

    def _applied(self, X, classes, matrix, rates):
        """X (U A Uᵀ + λ (I − U Uᵀ) + Σ_g (λ_g − λ) V_g V_gᵀ)."""
        xp: Any = module_of(X, self, matrix, rates)
        X, V, rest, matrix, rates = map(xp.asarray, (X, self.basis, self.rest, matrix, rates))
        rate, counts = rates[0], np.diff(self.bounds)
        root = np.sqrt(np.asarray(classes.sizes, matrix.dtype))
        means = xp.asarray(classes.means(X))
        along = X @ V
        on_U = xp.concatenate([xp.einsum("...c,c->...c", means, root), along], axis=-1) @ matrix
        C = classes.num_classes
        on_classes = xp.einsum("...c,c->...c", on_U[..., :C], 1 / root) - means * rate
        out = X * rate + xp.asarray(classes.expand(on_classes)) + (on_U[..., C:] - along * rate) @ V.T
        if len(counts):
            more = xp.concatenate([xp.broadcast_to(one - rate, (m,)) for one, m in zip(rates[1:], counts, strict=True)])
            out = out + xp.einsum("...l,l->...l", X @ rest, more) @ rest.T
        return as_array(out)

    def as_matrix(self, classes):
        return self.mv(np.eye(classes.num_samples, dtype=self.matrix.dtype), classes)

    def block_means(self, classes):
        N, R, C = classes.num_samples, self.matrix.shape[0], classes.num_classes
        root = jnp.sqrt(classes.weights.astype(self.matrix.dtype))
        pairs = root[:, None] * self.matrix[:C, :C] * root[None, :]
        counts = np.array([N - R - self.bounds[-1], *np.diff(self.bounds)], dtype=self.rates.dtype)
        trace, same, total = jnp.trace(self.matrix) + jnp.sum(counts * self.rates), jnp.trace(pairs), pairs.sum()
        return classes.block_means(trace, same - trace, total - same)

    def eigenvalues(self, classes):
        xp: Any = jnp if is_traced(self.matrix, self.rates) else np
        left = classes.num_samples - self.matrix.shape[0] - self.bounds[-1]
        on_U, rates = xp.linalg.eigvalsh(xp.asarray(self.matrix)), xp.asarray(self.rates)
        values = xp.concatenate([on_U, rates if left else rates[1:]])
        counts = np.asarray([*np.ones(len(on_U)), *([left] if left else []), *np.diff(self.bounds)], dtype=float)
        if is_traced(values):
            return values, counts
        order = np.argsort(values)
        return as_array(values[order]), counts[order]

    def direction_gram(self, sizes):
        # In units of the class indicators, and of directions of their mean length.
        xp = jnp if is_traced(sizes, self.matrix) else np
        sizes, T = xp.asarray(sizes), xp.asarray(self.matrix)
        lengths = xp.concatenate([sizes, xp.broadcast_to(sizes.mean(), (self.num_directions,))]) ** 0.5
        return as_array(T / (lengths[:, None] * lengths[None, :]))

    def group_rates(self, num_classes):
        del num_classes
        return self.rates

    def split(self, deviations, classes):
        del classes
        xp: Any = module_of(deviations, self.basis, self.rest)
        deviations, V, rest = map(xp.asarray, (deviations, self.basis, self.rest))
        parts = [(deviations @ G) @ G.T for G in (rest[:, i:j] for i, j in itertools.pairwise(self.bounds))]
        return xp.stack([deviations - (deviations @ V) @ V.T - sum(parts), *parts])


def most_blocks(classes: Classes) -> int:
    """How many blocks of C directions fill the N − C beside the class indicators; the last may have fewer."""
    return -(-(classes.num_samples - classes.num_classes) // classes.num_classes)


def _of_indicators(
    operator: Any, classes: Any, blocks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, "_Products", Classes]:
    """[Z D^(−1/2), Q_1, ..., Q_q], its images under K, the last block, the products and the classes."""
    classes = as_classes(classes)
    N, C = classes.num_samples, classes.num_classes
    if blocks != 0 or isinstance(blocks, bool | float):
        check_whole("blocks", blocks)
    most = most_blocks(classes)
    if blocks > most:
        raise ValueError(
            f"blocks: expected at most {most}, which fill the N - C = {N - C} directions beside the {C} class "
            f"indicators, got {blocks}."
        )
    product = _Products(operator, classes)
    return *_lanczos(_indicators(classes), product, blocks), product, classes


def _lanczos(
    block: np.ndarray,
    product: _Products,
    blocks: int,
    enough: Callable[[np.ndarray, np.ndarray, int], Any] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """So many blocks after the first one, fewer where `enough` of them are there: all, their images, the last one."""
    U, images = block, np.zeros((len(block), 0))
    for j in range(blocks + 1):
        images = np.concatenate([images, product(block)], axis=1)
        if j == blocks or (enough is not None and enough(U, images, block.shape[1])):
            break
        block = _next_block(U, images, block.shape[1], product.eps, j + 1)
        U = np.concatenate([U, block], axis=1)
        if not block.shape[1]:
            break
    return U, images, block


def _beside(span: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what columns have beside a span, without what is rounding of them."""
    size = np.linalg.norm(columns)
    for _ in range(2):
        columns = columns - span @ (span.T @ columns)
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    block = vectors[:, (sizes > 1e-6 * size) & (np.arange(len(sizes)) < len(span) - span.shape[1])]
    return np.linalg.qr(block - span @ (span.T @ block))[0]


def _indicators(classes: Classes) -> np.ndarray:
    """Z D^(−1/2), (N, C)."""
    sizes = np.asarray(classes.sizes)
    return np.repeat(np.eye(classes.num_classes) / np.sqrt(sizes), sizes, axis=0)


def _sums_vanish(basis: Any, classes: Classes) -> bool:
    if is_traced(basis):
        return True
    starts = np.concatenate([[0], np.cumsum(classes.sizes)[:-1]])
    return not basis.shape[1] or bool(np.abs(np.add.reduceat(np.asarray(basis), starts, axis=0)).max() < 1e-4)


def _check_positive_on(where: str, eigenvalue: float, rounding: float = 0.0) -> None:
    if eigenvalue <= rounding:
        raise ValueError(
            f"operator: expected a positive-definite kernel, got the eigenvalue {eigenvalue:.3g} on {where}"
            f"{' (of the size of rounding)' if eigenvalue > 0 else ''}; take fewer blocks, or add a positive multiple "
            "of the identity."
        )


def _next_block(U: np.ndarray, images: np.ndarray, width: int, eps: float, number: int) -> np.ndarray:
    """An orthonormal basis of what the last `width` images have beside the span of U, without rounding's part.

    Where all of it counts, the one nearest to these images, (WᵀW)^(−1/2): a direction belongs to each image.
    """
    W = images[:, images.shape[1] - width :]
    for _ in range(2):
        W = W - U @ (U.T @ W)
    vectors, values, onto = np.linalg.svd(W, full_matrices=False)
    room = U.shape[0] - U.shape[1]
    kept = min(int((values > 10 * eps * np.linalg.norm(images, 2)).sum()), room)
    block = vectors @ onto if kept == width else vectors[:, :kept]
    lost = np.abs(U.T @ block).max(initial=0.0)
    if lost > 1e-8:
        warnings.warn(
            f"operator: directions of block {number} lost orthogonality ({lost:.1g}) and were made orthogonal once "
            "more; they hold little beside the rounding of the products. Take fewer blocks, or products in double "
            "precision.",
            stacklevel=5,
        )
    for _ in range(2):
        block, triangle = np.linalg.qr(block - U @ (U.T @ block))
        # Nearly the identity, up to signs that qr leaves open.
        block = block * np.where(np.diag(triangle) < 0, -1.0, 1.0)[None, :]
    return block


def _mean_rate(U, T, product: _Products, trace, classes: Classes, seed) -> float:
    """The mean eigenvalue of K on what is orthogonal to U; that of K on U where nothing else is left."""
    rest = U.shape[0] - U.shape[1]
    if rest == 0:
        return float(np.trace(T) / len(T))
    if trace is not None:
        return float((trace - np.trace(T)) / rest)
    # A random subspace: its mean is right on average, and exact where the subspace is all of the rest.
    probes = np.random.default_rng(seed).normal(size=(U.shape[0], min(classes.num_classes, rest)))
    for _ in range(2):
        probes = np.linalg.qr(probes - U @ (U.T @ probes))[0]
    return float(np.sum(probes * product(probes)) / probes.shape[1])
