"""The last layer of a network: the one place where rows of samples become the theory's columns."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse._arrays import as_array, module_of
from ntkcollapse._checks import check_arrays, check_finite, check_real, check_shape
from ntkcollapse.classes import Classes, as_classes, class_order


class LastLayer(eqx.Module):
    """Features, classifier and bias (H, W, b) of a last layer with logits f = W H + b 1ᵀ.

    Args:
        H: features, (n, N), one column a sample in class order.
        W: classifier, (C, n).
        b: bias, (C,).

    Raises:
        ValueError: shapes that disagree, or numbers that are not real, masked or not finite.
    """

    H: Float[Array, "n N"]
    W: Float[Array, "C n"]
    b: Float[Array, " C"]

    def __init__(self, H, W, b):
        check_arrays(H=H, W=W, b=b)
        arrays = [as_array(x) for x in (H, W, b)]
        # One floating-point precision for all three: the widest given.
        given = [x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
        dtype = max(given, key=lambda d: d.itemsize) if given else jnp.result_type(float)
        self.H, self.W, self.b = (x.astype(dtype) for x in arrays)

    def __check_init__(self):
        check_shape("H", self.H, (None, None), "(n features, N samples)")
        n, columns = self.H.shape
        if np.ndim(self.W) == 2 and self.W.shape[1] == columns != n:
            raise ValueError(
                f"H: expected shape ({columns}, N), one column a sample and a row for each of the {columns} features "
                f"of W; got {self.H.shape}, whose transpose fits."
            )
        check_shape("W", self.W, (None, self.H.shape[0]), f"(C classes, n = {self.H.shape[0]} features, as H has)")
        check_shape("b", self.b, (self.W.shape[0],), f"one bias for each of the C = {self.W.shape[0]} rows of W")
        for name, value in (("H", self.H), ("W", self.W), ("b", self.b)):
            check_finite(name, value)

    @classmethod
    def from_rows(cls, features, labels, kernel, bias=None) -> tuple["LastLayer", Classes]:
        """The last layer of a network, with its samples put in class order.

        Args:
            features: input of the last linear layer, (N, n), one row a sample in any order.
            labels: integer class of each row.
            kernel: weight of that layer as flax stores it, (n, C).
            bias: its bias (C,), or None for a layer without one.
        Returns:
            The last layer, and the classes behind its columns.
        """
        check_arrays(features=features, labels=labels, kernel=kernel, **({} if bias is None else {"bias": bias}))
        order = class_order(labels)
        check_shape("features", features, (order.size, None), "(N samples, n features) with one label a row")
        classes = Classes.from_labels(np.asarray(labels)[order])
        check_shape("kernel", kernel, (np.shape(features)[1], classes.num_classes), "(n features, C classes)")
        b = jnp.zeros(classes.num_classes, jnp.asarray(kernel).dtype) if bias is None else bias
        xp = module_of(features, kernel)
        return cls(H=xp.asarray(features)[order].T, W=xp.asarray(kernel).T, b=b), classes

    @classmethod
    def stacked(cls, H, W, b) -> "LastLayer":
        """Stacks last layers along a leading time axis: H (T, n, N), W (T, C, n), b (T, C). Shapes are not checked."""
        check_real(H=H, W=W, b=b)
        layers = object.__new__(cls)
        for name, value in (("H", H), ("W", W), ("b", b)):
            object.__setattr__(layers, name, as_array(value))
        return layers

    def check(self, classes: Classes) -> None:
        """Raises ValueError where N or C disagree with `classes`."""
        classes = as_classes(classes)
        check_shape(
            "H",
            self.H,
            (None, classes.num_samples),
            f"(n, N) for the {classes.num_samples} samples of classes",
        )
        check_shape(
            "W",
            self.W,
            (classes.num_classes, None),
            f"(C, n) for the {classes.num_classes} classes of classes",
        )

    @property
    def logits(self) -> Float[Array, "C N"]:
        """f = W H + b 1ᵀ."""
        W, H, b = map(module_of(self).asarray, (self.W, self.H, self.b))
        with np.errstate(all="ignore"):
            return as_array(W @ H + b[:, None])

    def residual(self, classes: Classes) -> Float[Array, "C N"]:
        """R = W H + b 1ᵀ − Y."""
        xp = module_of(self)
        return as_array(xp.asarray(self.logits) - xp.asarray(classes.Y).astype(self.H.dtype))

    def class_means(self, classes: Classes) -> Float[Array, "n C"]:
        """M, one column a class; the paper's H1."""
        return classes.means(self.H)
