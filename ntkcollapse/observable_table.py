r"""The table of observables: what each is called, how it is drawn, who defines it, and where it is shown.

Figures, tables, reports, files and `docs/observables.md` select from `OBSERVABLES` by attribute; no other module lists
observables by name. The order of the table is that of rows, panels and legends.

To add a metric of collapse, write its function of `ClassStatistics` (and W, b), export it from `ntkcollapse.collapse`,
and add an entry of the same name here. Runs of the theory and of networks then observe it, `collapse.measure` and the
report list it, and the places that it is `shown` in show it.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ntkcollapse._checks import check_choice
from ntkcollapse._palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY

PLACES = {
    "simulate": "table of `ntkcollapse simulate`, and a trajectory that is printed",
    "train": "table of `ntkcollapse train`",
    "test data": "table of `ntkcollapse train`, about the means of training and test data",
    "sweep": "table of `ntkcollapse sweep`",
    "summary": "summary.csv of a sweep",
    "overview": "table of `ntkcollapse compare` on collapse",
    "report": "table of the course of a run in its report",
    "figure": "panels of a run's figure",
    "gaps": "compared with a prediction where nothing else is asked for; tables of `ntkcollapse compare`",
    "prices": "horizons of the rungs and prices of assumptions",
    "ladder figure": "panels of the figure of a ladder",
    "depth figure": "panels of the figure of all layers",
    "layers": "measured in every layer",
    "points": "one run of a sweep as a point: the invariant, and the collapse it led to",
}
"""The places that observables are shown in."""


@dataclass(frozen=True)
class Observable:
    r"""An observable: a number, or an array of them, at every record of a run.

    Args:
        name: its key in trajectories and files.
        symbol: in tables of a terminal.
        label: on axes and in legends, with LaTeX.
        meaning: in words; `long_name` in files.
        unit: "1" where it has none; of times and rates, flow time of the loss.
        scale: of its axis, "log" or "linear".
        colour: of its lines.
        source: who defines it.
        group: observables of one group share a panel, whose title this is.
        shown: in which of `PLACES`.
        needs_squared_loss: whether it means something for the squared loss alone.
        of: arguments of the function behind a metric, among "statistics", "W" and "b"; empty for all else, which
            `ntkcollapse.observables` and measurements compute.
        function: behind a metric; by default that of `ntkcollapse.collapse` with the name of the entry, or the one that
            this names.
        along_runs: whether a metric is observed at every record; otherwise at the end, in reports, and by
            `collapse.measure`.
        needs_columns: whether a metric needs the scatter of single features and classes, which a start without columns
            does not give.
        progress: what a progress bar calls it; of several with one such name the first that was measured is shown.

    Raises:
        ValueError: an unknown place, scale or argument.
    """

    name: str
    symbol: str
    label: str
    meaning: str
    unit: str = "1"
    scale: str = "log"
    colour: str = BLACK
    source: str = ""
    group: str = ""
    shown: tuple[str, ...] = ()
    needs_squared_loss: bool = False
    of: tuple[str, ...] = ()
    function: str | Callable[..., Any] | None = None
    along_runs: bool = True
    needs_columns: bool = False
    progress: str = ""

    def __post_init__(self):
        check_choice(f"scale of observable {self.name!r}", self.scale, ("log", "linear"))
        for place in self.shown:
            check_choice(f"shown of observable {self.name!r}", place, PLACES)
        for argument in self.of:
            check_choice(f"of of observable {self.name!r}", argument, ("statistics", "W", "b"))

    @property
    def short(self) -> str:
        """Its label where that is one formula, its symbol otherwise: for the ticks of an axis."""
        return self.label if self.label.startswith("$") and self.label.endswith("$") else self.symbol


_SELEZNOVA = "Seleznova et al. (2023)"
_PAPYAN = "Papyan, Han & Donoho (2020)"
_RANGAMANI = "Rangamani & Banburski-Fahey (2022)"
_AMMAR = "Ammar et al. (2024)"
_COMPARED = ("gaps", "prices", "ladder figure")
_KERNEL = ("report", "figure")

OBSERVABLES: dict[str, Observable] = {
    entry.name: entry
    for entry in (
        Observable(
            "loss", "loss", r"$\frac{1}{2}\|R\|^2$", "loss on the observed samples",
            group="Summed loss", source=_SELEZNOVA, shown=("simulate", "report", "figure", "gaps", "prices"),
        ),
        Observable(
            "learning_rate", "learning rate", "learning rate", "learning rate of the next step",
            group="Course of training", shown=("train",),
        ),
        Observable(
            "train_loss", "training loss", "training loss", "loss on the training set", group="Loss", colour=BLUE,
            shown=("train", "summary", "report", "figure"), progress="loss",
        ),
        Observable(
            "train_accuracy", "training accuracy", "training accuracy", "accuracy on the training set", scale="linear",
            group="Accuracy", colour=BLUE, shown=("overview", "train", "sweep", "summary", "report", "figure"),
            progress="acc",
        ),
        Observable(
            "test_loss", "test loss", "test loss", "loss on the test set", group="Loss", colour=ORANGE,
            shown=("train", "figure"),
        ),
        Observable(
            "test_accuracy", "test accuracy", "test accuracy", "accuracy on the test set", scale="linear",
            group="Accuracy", colour=ORANGE, shown=("overview", "train", "sweep", "summary", "report", "figure"),
            progress="test",
        ),
        Observable(
            "accuracy", "accuracy", "accuracy", "accuracy on the observed samples", scale="linear", group="Accuracy",
            shown=("points",),
        ),
        Observable(
            "residual_single", "R_single", r"$\|R-R_{\mathrm{class}}\|$", "norm of R - R_class", colour=BLUE,
            group="Residual parts", source=_SELEZNOVA, needs_squared_loss=True,
            shown=("simulate", "report", "figure", *_COMPARED),
        ),
        Observable(
            "residual_class", "R_class-R_global", r"$\|R_{\mathrm{class}}-R_{\mathrm{global}}\|$",
            "norm of R_class - R_global", colour=RED, group="Residual parts", source=_SELEZNOVA,
            needs_squared_loss=True, shown=("simulate", "report", "figure", *_COMPARED),
        ),
        Observable(
            "residual_global", "R_global", r"$\|R_{\mathrm{global}}\|$", "norm of R_global", colour=GREEN,
            group="Residual parts", source=_SELEZNOVA, needs_squared_loss=True,
            shown=("simulate", "report", "figure", *_COMPARED),
        ),
        Observable(
            "nc1_tirer2022", "NC1 (Tirer)", r"NC1 $\mathrm{tr}\,\Sigma_W/\mathrm{tr}\,\Sigma_B$",
            "variance within classes over that of class means: tr Σ_W/tr Σ_B", colour=PURPLE,
            group="Within-class variability", source="Tirer & Bruna (2022)", of=("statistics",), progress="nc1",
            shown=(
                "overview",
                "simulate", "train", "test data", "sweep", "summary", "report", "figure", "layers", "depth figure",
                "points", *_COMPARED,
            ),
        ),
        Observable(
            "nc1_seleznova2023", "NC1", r"NC1 mean feature std", "mean standard deviation of a feature within a class",
            colour=BLUE, group="Within-class variability", source=f"code of {_SELEZNOVA}", of=("statistics",),
            needs_columns=True, progress="nc1",
            shown=("simulate", "train", "sweep", "summary", "report", "figure", "layers"),
        ),
        Observable(
            "nc1_papyan2020", "NC1 (Papyan)", r"NC1 $\mathrm{tr}(\Sigma_W\Sigma_B^{+})/C$",
            "within-class covariance against that of class means: tr(Σ_W Σ_B⁺)/C", colour=SKY,
            group="Within-class variability", source=_PAPYAN, of=("statistics",),
            shown=("report", "figure", "layers", "depth figure"),
        ),
        Observable(
            "nc1_han2022", "NC1 (Han)", r"NC1 $\mathrm{tr}(\Sigma_W\Sigma_B^{+})$",
            "within-class covariance against that of class means: tr(Σ_W Σ_B⁺)", group="Within-class variability",
            source="code of Han, Papyan & Donoho (2022)", of=("statistics",), along_runs=False,
        ),
        Observable(
            "mean_cdnv_galanti2022", "CDNV", "class-distance normalised variance",
            "mean over pairs of classes of (Var_c + Var_d)/(2|μ_c - μ_d|²)", group="Within-class variability",
            source="Galanti, György & Hutter (2022)", of=("statistics",), along_runs=False, shown=("layers",),
        ),
        Observable(
            "fisher_ratio_zarka2021", "Fisher ratio", r"Fisher ratio $\mathrm{tr}(\Sigma_W^{-1}\Sigma_B)$",
            "covariance of class means against that within classes: tr(Σ_W⁻¹ Σ_B)", group="Within-class variability",
            source="Zarka, Guth & Mallat (2021)",
        ),
        Observable(
            "nc2_seleznova2023", "NC2", "NC2 (class means: simplex ETF)",
            "distance of the normalised Gram matrix of centred class means from that of a simplex ETF", colour=RED,
            group="Geometry of means and weights", source=_SELEZNOVA, of=("statistics",),
            shown=(
                "overview",
                "simulate", "train", "sweep", "summary", "report", "figure", "layers", "depth figure", "points",
                *_COMPARED,
            ),
        ),
        Observable(
            "nc2_equinorm_papyan2020", "NC2 lengths", "NC2 (equal lengths of class means)",
            "standard deviation over mean of the lengths of centred class means", source=_PAPYAN,
            group="Geometry of means and weights", of=("statistics",), along_runs=False,
        ),
        Observable(
            "nc2_equiangle_papyan2020", "NC2 angles", "NC2 (equal angles of class means)",
            "standard deviation of the cosines between centred class means", source=_PAPYAN,
            group="Geometry of means and weights", of=("statistics",), along_runs=False,
        ),
        Observable(
            "nc2_maximal_angle_papyan2020", "NC2 maximal angles", "NC2 (maximal angles of class means)",
            "mean distance of the cosines between centred class means from -1/(C - 1)", source=_PAPYAN,
            group="Geometry of means and weights", of=("statistics",), along_runs=False,
        ),
        Observable(
            "nc2_log_energy_liu2023", "NC2 log energy", "NC2 (logarithmic energy of class means)",
            "logarithmic energy of the directions of centred class means, above that of a simplex ETF",
            source="Liu, Yu, Weller & Schölkopf (2023)", group="Geometry of means and weights", of=("statistics",),
            along_runs=False, shown=("layers",),
        ),
        Observable(
            "nc2_riesz_energy_liu2023", "NC2 Riesz energy", "NC2 (Riesz energy of class means)",
            "Riesz energy (s = 1) of the directions of centred class means over that of a simplex ETF, less 1",
            source="Liu, Yu, Weller & Schölkopf (2023)", group="Geometry of means and weights", of=("statistics",),
            along_runs=False, shown=("layers",),
        ),
        Observable(
            "nc2_equidistance_wu2024", "NC2 distances", "NC2 (equal distances of class means)",
            "standard deviation of the logarithms of distances between directions of centred class means",
            source="Wu & Papyan (2024)", group="Geometry of means and weights", of=("statistics",), along_runs=False,
        ),
        Observable(
            "nc3_seleznova2023", "NC3", "NC3 (means aligned with $W$)",
            "distance of normalised W from the normalised centred class means", colour=GREEN,
            group="Geometry of means and weights", source=_SELEZNOVA, of=("statistics", "W"),
            shown=("overview", "simulate", "train", "sweep", "summary", "report", "figure", "points", *_COMPARED),
        ),
        Observable(
            "nc3_han2022", "NC3 (Han)", "NC3 (means aligned with $W$), squared",
            "squared distance of normalised W from the normalised centred class means",
            source="code of Han, Papyan & Donoho (2022)", group="Geometry of means and weights",
            of=("statistics", "W"), along_runs=False,
        ),
        Observable(
            "nc3_zhu2021", "NC3 (Zhu)", r"NC3 ($W\bar{M}$: simplex)",
            "distance of normalised W times centred class means from that of a simplex", source="Zhu et al. (2021)",
            group="Geometry of means and weights", of=("statistics", "W"), along_runs=False,
        ),
        Observable(
            "nc2_zhu2021", "NC2 of W", "NC2 ($W$: simplex ETF)",
            "distance of the normalised Gram matrix of the rows of W from that of a simplex ETF",
            source="Zhu et al. (2021), of W", group="Geometry of means and weights", of=("W",), along_runs=False,
        ),
        Observable(
            "nc2_equinorm_papyan2020_of_weights", "NC2 lengths of W", "NC2 (equal lengths of rows of $W$)",
            "standard deviation over mean of the lengths of the rows of W", source=f"{_PAPYAN}, of W",
            group="Geometry of means and weights", of=("W",), function="nc2_equinorm_papyan2020", along_runs=False,
        ),
        Observable(
            "nc2_equiangle_papyan2020_of_weights", "NC2 angles of W", "NC2 (equal angles of rows of $W$)",
            "standard deviation of the cosines between the rows of W", source=f"{_PAPYAN}, of W",
            group="Geometry of means and weights", of=("W",), function="nc2_equiangle_papyan2020", along_runs=False,
        ),
        Observable(
            "nc2_maximal_angle_papyan2020_of_weights", "NC2 maximal angles of W", "NC2 (maximal angles of rows of $W$)",
            "mean distance of the cosines between the rows of W from -1/(C - 1)", source=f"{_PAPYAN}, of W",
            group="Geometry of means and weights", of=("W",), function="nc2_maximal_angle_papyan2020", along_runs=False,
        ),
        Observable(
            "nc2_log_energy_liu2023_of_weights", "NC2 log energy of W", "NC2 (logarithmic energy of rows of $W$)",
            "logarithmic energy of the directions of the rows of W, above that of a simplex ETF",
            source="Liu, Yu, Weller & Schölkopf (2023), of W", group="Geometry of means and weights", of=("W",),
            function="nc2_log_energy_liu2023", along_runs=False,
        ),
        Observable(
            "snc1_mixon2022", "SNC1", r"SNC1 ($WW^\top=\sqrt{m}P$)",
            "distance of WWᵀ from that of strong collapse of unconstrained features, relative",
            source="Mixon, Parshall & Pi (2022)", group="Strong collapse", of=("statistics", "W"), along_runs=False,
        ),
        Observable(
            "snc2_mixon2022", "SNC2", r"SNC2 ($H=W^\top\otimes 1^\top/\sqrt{m}$)",
            "distance of features from the rows of W over √m, relative to those of strong collapse",
            source="Mixon, Parshall & Pi (2022)", group="Strong collapse", of=("statistics", "W"), along_runs=False,
        ),
        Observable(
            "snc3_mixon2022", "SNC3", "SNC3 ($b=1/C$)", "distance of the bias from the mean label, relative",
            source="Mixon, Parshall & Pi (2022)", group="Strong collapse", of=("b",), along_runs=False,
        ),
        Observable(
            "nc4_mismatch", "NC4", "NC4 (mismatch with nearest mean)",
            "share of samples that the classifier assigns to another class than the nearest class mean",
            scale="linear", colour=ORANGE, group="Nearest class mean", source=_PAPYAN,
            shown=("overview", "simulate", "train", "report", "figure", "gaps"),
        ),
        Observable(
            "nc4_mismatch_without_bias", "NC4 without bias", "NC4 (mismatch with nearest mean), without bias",
            "NC4 of the classifier without its bias", scale="linear", group="Nearest class mean",
            source="as some published code has it",
        ),
        Observable(
            "ncc_accuracy", "NCC accuracy", "accuracy of nearest class mean",
            "accuracy of the nearest class mean as a classifier", scale="linear", group="Nearest class mean",
            source="Galanti, Galanti & Ben-Shaul (2022); Ben-Shaul & Dekel (2022)", shown=("layers",),
        ),
        Observable(
            "ncc_error", "NCC error", "error of nearest class mean", "error of the nearest class mean as a classifier",
            scale="linear", group="Nearest class mean", shown=("depth figure",),
            source="Galanti, Galanti & Ben-Shaul (2022); Ben-Shaul & Dekel (2022)",
        ),
        Observable(
            "knn_accuracy", "kNN accuracy", "accuracy of $k$ nearest neighbours",
            "accuracy of the k nearest training features as a classifier", scale="linear", group="Nearest class mean",
            source="Cohen, Sapiro & Giryes (2018)",
        ),
        Observable(
            "rate_reduction_yu2020", "ΔR", r"coding rate reduction $\Delta R$",
            "coding rate of all features less that of each class", "nat", scale="linear", group="Coding rate",
            source="Yu, Chan, You, Song & Ma (2020)",
        ),
        Observable(
            "invariant_norm", "|E|", r"$\|W^\top W-HK^{-1}H^\top\|$", "norm of the invariant WᵀW - H K⁻¹ Hᵀ",
            group="Invariant", source=_SELEZNOVA, shown=("simulate", "train", "summary", "points"),
        ),
        Observable(
            "invariant_relative", "|E|, relative", r"$\|W^\top W-HK^{-1}H^\top\|$, relative",
            "norm of the invariant over |WᵀW| + |H K⁻¹ Hᵀ|", scale="linear", group="Invariant", source=_SELEZNOVA,
            shown=("overview", "report", "figure", "gaps", "points"),
        ),
        Observable(
            "invariant_alignment", "alignment of E", r"alignment of $W^\top W$, $HK^{-1}H^\top$",
            "cosine between WᵀW and H K⁻¹ Hᵀ", scale="linear", colour=PURPLE, group="Invariant", source=_SELEZNOVA,
            shown=("overview", "simulate", "train", "sweep", "summary", "report", "figure", "points"),
        ),
        Observable(
            "necessary_condition", "necessary condition", "distance from the form that collapse needs",
            "distance of the invariant from the form that collapse needs, over |WᵀW| + |H K⁻¹ Hᵀ|", scale="linear",
            colour=ORANGE, group="Invariant", source=_SELEZNOVA, shown=("simulate", "report", "figure", "points"),
        ),
        Observable(
            "invariant_drift", "drift of E", r"$\|E(t)-E(0)\|$, relative",
            "change of the invariant since the first record, over |WᵀW| + |H K⁻¹ Hᵀ|",
        ),
        Observable(
            "kappa_diagonal", "κ_d", r"$\kappa_d$", "feature kernel of a sample with itself, mean", scale="log",
            colour=BLUE, group="Feature kernel", source=_SELEZNOVA, shown=(*_KERNEL, "gaps"),
        ),
        Observable(
            "kappa_within", "κ_c", r"$\kappa_c$", "feature kernel of two samples of one class, mean", scale="log",
            colour=RED, group="Feature kernel", source=_SELEZNOVA, shown=(*_KERNEL, "gaps"),
        ),
        Observable(
            "kappa_between", "κ_n", r"$\kappa_n$", "feature kernel of samples of two classes, mean", scale="log",
            colour=GREEN, group="Feature kernel", source=_SELEZNOVA, shown=(*_KERNEL, "gaps"),
        ),
        Observable(
            "gamma_diagonal", "γ_d", r"$\gamma_d$", "output kernel of a sample with itself, mean", scale="log",
            colour=BLUE, group="Output kernel", source=_SELEZNOVA, shown=_KERNEL,
        ),
        Observable(
            "gamma_within", "γ_c", r"$\gamma_c$", "output kernel of two samples of one class, mean", scale="log",
            colour=RED, group="Output kernel", source=_SELEZNOVA, shown=_KERNEL,
        ),
        Observable(
            "gamma_between", "γ_n", r"$\gamma_n$", "output kernel of samples of two classes, mean", scale="log",
            colour=GREEN, group="Output kernel", source=_SELEZNOVA, shown=_KERNEL,
        ),
        Observable(
            "kappa_alignment", "alignment of κ", r"of $\Theta^h$ with $Y^\top Y$",
            "cosine between the feature kernel and YᵀY", scale="linear", colour=BLUE, group="Kernel alignment",
            source=_SELEZNOVA, shown=("overview", "train", "sweep", "summary", "figure"), progress="align",
        ),
        Observable(
            "gamma_alignment", "alignment of γ", r"of $\Theta$ with $Y^\top Y$",
            "cosine between the output kernel and YᵀY", scale="linear", colour=ORANGE, group="Kernel alignment",
            source=_SELEZNOVA, shown=("train", "sweep", "summary", "figure"), progress="align",
        ),
        Observable(
            "kappa_centred_alignment", "centred alignment of κ", r"of $\Theta^h$ with $Y^\top Y$, centred",
            "cosine between the centred feature kernel and centred YᵀY", scale="linear", group="Kernel alignment",
        ),
        Observable(
            "gamma_centred_alignment", "centred alignment of γ", r"of $\Theta$ with $Y^\top Y$, centred",
            "cosine between the centred output kernel and centred YᵀY", scale="linear", group="Kernel alignment",
        ),
        Observable(
            "kappa_class_pairs", "κ of class pairs", r"$\kappa_{cd}$", "feature kernel of each pair of classes, mean",
            scale="linear",
        ),
        Observable(
            "gamma_class_pairs", "γ of class pairs", r"$\gamma_{cd}$", "output kernel of each pair of classes, mean",
            scale="linear",
        ),
        Observable("weight_norm", "|W|", r"$\|W\|$", "norm of W"),
        Observable("bias_norm", "|b|", r"$\|b\|$", "norm of b"),
        Observable("class_means_norm", "|M|, centred", r"$\|\bar{M}\|$", "norm of the class means about their mean"),
        Observable("mean_feature_norm", "|μ|", r"$\|\mu_G\|$", "norm of the mean of class means"),
        Observable("scatter_norm", "√tr S", r"$\sqrt{\mathrm{tr}\,S}$", "norm of the deviations from class means"),
        Observable("parameter_norm", "|θ|", r"$\|\theta\|$", "norm of all parameters"),
        Observable("all_weights_norm", "|weights|", r"$\|\theta_{\mathrm{weights}}\|$", "norm of all weights"),
        Observable("batch_loss", "batch loss", "batch loss", "loss on the batch of the last step", progress="loss"),
        Observable(
            "batch_accuracy", "batch accuracy", "batch accuracy", "accuracy on the batch of the last step",
            scale="linear", progress="acc",
        ),
        Observable("gradient_norm", "|gradient|", r"$\|\nabla_\theta\|$", "norm of the gradient of the last step"),
        Observable(
            "blocks_matrix", "T", "$T$", "feature kernel between class indicators and Krylov directions",
            scale="linear",
        ),
        Observable(
            "blocks_rates", "eig T", r"$\lambda(T)$",
            "eigenvalues of the feature kernel on class indicators and Krylov directions", group="Krylov blocks",
        ),
        Observable(
            "blocks_rest", "λ rest", r"$\lambda$",
            "mean eigenvalue of the feature kernel on what is orthogonal to them", group="Krylov blocks",
        ),
        Observable(
            "blocks_residual", "‖B_(q+1)‖", r"$\|B_{q+1}\|$", "how strongly Krylov directions drive the rest",
            group="Krylov blocks",
        ),
        Observable(
            "ansatz_correlation", "ansatz", "correlation with the AGOP",
            "correlation of WᵀW with the average gradient outer product, by layer", scale="linear",
            group="Neural feature ansatz",
        ),
        Observable(
            "ansatz_root_correlation", "ansatz, root", "correlation with the root of the AGOP",
            "correlation of WᵀW with the root of the average gradient outer product, by layer", scale="linear",
            group="Neural feature ansatz",
        ),
        Observable(
            "weight_identity_gap", "weight identity", r"gap of $\lambda\|w_c\|^2=\langle(y-f)_c f_c\rangle$",
            "relative gap between λ|w_c|² and what it is at a critical point", colour=BLUE,
            group="Weight decay and quasi-interpolation", source=_RANGAMANI,
        ),
        Observable(
            "symmetric_weights_gap", "W from means", r"gap of $w_c=\epsilon(\mu_c-\mu_G)/\lambda(C-1)$",
            "relative distance of W from what quasi-interpolation makes of class means", colour=RED,
            group="Weight decay and quasi-interpolation", source=_RANGAMANI,
        ),
        Observable(
            "symmetry_residual", "asymmetry", "residual of quasi-interpolation",
            "distance of outputs from 1 - ε and ε/(C - 1), over that of one-hot labels", colour=ORANGE,
            group="Weight decay and quasi-interpolation", source=_RANGAMANI,
        ),
        Observable(
            "layer_imbalance", "layer imbalance", "imbalance of layers",
            "range over mean of the squared norms of weight tensors", colour=GREEN,
            group="Weight decay and quasi-interpolation", source=_RANGAMANI,
        ),
        Observable(
            "epsilon", "ε", r"$\epsilon$", "mean of 1 - f_y, what is missing of the right output",
            group="Quasi-interpolation", source=_RANGAMANI,
        ),
        Observable(
            "epsilon_spread", "spread of ε", r"spread of $\epsilon$", "standard deviation of 1 - f_y over its mean",
            group="Quasi-interpolation", source=_RANGAMANI,
        ),
        Observable(
            "few_shot_error", "few-shot error", "few-shot error",
            "error of the nearest centre of so many examples a class, by number of examples", scale="linear",
            group="Few-shot error", source="Galanti, György & Hutter (2022)",
        ),
        Observable(
            "auroc_simplex_distance", "AUROC, distance", "distance from the nearest class mean",
            "area under the curve of the distance from the nearest class mean", scale="linear", colour=BLUE,
            group="Detection of what is of no class",
        ),
        Observable(
            "auroc_simplex_angle", "AUROC, angle", "angle to the nearest class mean",
            "area under the curve of the angle to the nearest class mean", scale="linear", colour=GREEN,
            group="Detection of what is of no class",
        ),
        Observable(
            "auroc_neco", "AUROC, NECO", "part outside the principal space (NECO)",
            "area under the curve of the part outside the principal space of training", scale="linear", colour=RED,
            group="Detection of what is of no class", source=_AMMAR,
        ),
        Observable(
            "auroc_softmax", "AUROC, softmax", "largest softmax",
            "area under the curve of one minus the largest softmax", scale="linear", colour=BLACK,
            group="Detection of what is of no class", source="Hendrycks & Gimpel (2017)",
        ),
        Observable(
            "nc5_ammar2024", "NC5", r"NC5 $|\cos(\mu_c,\mu_{\mathrm{out}})|$",
            "mean cosine, in absolute value, between class means and the mean of what is of no class", scale="linear",
            group="Orthogonality of what is of no class", source=_AMMAR,
        ),
        Observable(
            "nc5_centred", "NC5, centred", "NC5, centred",
            "NC5 about the mean of class means", scale="linear", colour=BLUE,
            group="Orthogonality of what is of no class", source=_AMMAR,
        ),
        Observable("step", "step", "step", "steps of the optimiser taken", scale="linear", group="Course of training"),
        Observable("epoch", "epoch", "epoch", "epochs of training", scale="linear", group="Course of training"),
        Observable(
            "seconds", "seconds", "seconds", "time since training began", "s", scale="linear",
            group="Course of training", shown=("train",),
        ),
    )
}  # fmt: skip

# What is put before the name of an observable where it is of other samples or layers.
PREFIXES = {
    "train_": "training data",
    "test_": "test data, about its own means",
    "weak_": "test data, about the nearest training means",
    "strong_": "test data, about the training means of their classes",
    "unseen_": "classes that training did not have",
    "layers_": "each layer",
    "on_batch_": "the batch of the last step",
}


def described(name: str) -> Observable:
    """Describes the observable of this name.

    A name with one of `PREFIXES` is described as what stands behind the prefix; an unknown name, as that of a
    measurement of one's own, by itself.

    >>> described("kappa_within").symbol, described("weak_nc1_tirer2022").symbol, described("mine").label
    ('κ_c', 'NC1 (Tirer), test data, about the nearest training means', 'mine')
    """
    if name in OBSERVABLES:
        return OBSERVABLES[name]
    for prefix, where in PREFIXES.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            base = described(name.removeprefix(prefix))
            words = {key: f"{getattr(base, key)}, {where}" for key in ("symbol", "label", "meaning")}
            return dataclasses.replace(base, name=name, shown=(), progress="", **words)
    return Observable(name, name, name, name, scale="linear")


def shown_in(place: str) -> list[str]:
    """Names of the observables that are shown in one of `PLACES`, in order.

    Raises:
        ValueError: an unknown place.

    >>> shown_in("prices")[:3]
    ['loss', 'residual_single', 'residual_class']
    """
    check_choice("place", place, PLACES)
    return [name for name, entry in OBSERVABLES.items() if place in entry.shown]


def group(title: str, place: str | None = None) -> list[str]:
    """Names of the observables of a group, of those that are shown in a place alone where one is given.

    Raises:
        ValueError: an unknown group or place.

    >>> group("Feature kernel")
    ['kappa_diagonal', 'kappa_within', 'kappa_between']
    """
    check_choice("group", title, groups())
    names = OBSERVABLES if place is None else shown_in(place)
    return [name for name in names if OBSERVABLES[name].group == title]


def groups(place: str | None = None) -> list[str]:
    """Titles of the groups that have an observable, or one that is shown in this place, in order."""
    names = OBSERVABLES if place is None else shown_in(place)
    return list(dict.fromkeys(OBSERVABLES[name].group for name in names if OBSERVABLES[name].group))


def metrics(*, along_runs: bool = False) -> tuple[Observable, ...]:
    """The metrics of collapse: all, or those that are observed at every record of a run."""
    return tuple(entry for entry in OBSERVABLES.values() if entry.of and (entry.along_runs or not along_runs))


def as_markdown() -> str:
    """The table in Markdown: `python -m ntkcollapse.observable_table > docs/observables.md`."""
    rows = [
        "# Observables",
        "",
        'What a trajectory holds at each of its times: `run["loss"]`. Figures, tables, reports and the attributes of',
        "files (`long_name`, `units`) are selections from this table, which `python -m ntkcollapse.observable_table`",
        "writes. Formulas and ranges of the metrics of collapse: [collapse_metrics.md](collapse_metrics.md).",
        "",
        "Colours and scales are those of figures. † means something for the squared loss only.",
        "",
        "| name | in tables | in figures | what it is | unit | scale | colour | source | group | shown in |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in OBSERVABLES.values():
        dagger = " †" if entry.needs_squared_loss else ""
        label = entry.label.replace(r"\|", r"\Vert{}")
        cells = [f"`{entry.name}`{dagger}", entry.symbol, label, entry.meaning, entry.unit, entry.scale]
        cells += [f"`{entry.colour}`", entry.source, entry.group, ", ".join(entry.shown)]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    rows += ["", "Places:", "", *(f"- {place}: {what}" for place, what in PLACES.items())]
    rows += ["", "Prefixes of names:", "", *(f"- `{prefix}`: of {where}" for prefix, where in PREFIXES.items())]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
