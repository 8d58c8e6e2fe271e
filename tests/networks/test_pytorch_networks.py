"""Networks of PyTorch and their twins in JAX: outputs by PyTorch itself, kernels by its gradients, sample by sample.

Skipped where torch or torchvision is missing, as in the ordinary environment (the extra "pytorch" has both).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import networks
from ntkcollapse.classes import Classes
from ntkcollapse.comparison import NetworkAt
from ntkcollapse.data import Batches, Dataset
from ntkcollapse.training import recomputed_statistics

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
# Export warns of its own internals, as other versions of them do.
pytestmark = pytest.mark.filterwarnings("ignore")
LABELS = np.repeat(np.arange(3), 2)


def convolutional():
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), nn.Dropout(0.3),
        nn.Conv2d(4, 6, 2, groups=2, bias=False), nn.GroupNorm(3, 6), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, 3),
    ).double()  # fmt: skip


def perceptron():
    torch.manual_seed(1)
    nn = torch.nn
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 81, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()


def residual():
    """The smallest of torchvision's: a block in each of four stages."""
    torch.manual_seed(2)
    block = torchvision.models.resnet.BasicBlock
    model = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=3)
    model.conv1 = torch.nn.Conv2d(2, 64, 7, 2, 3, bias=False)
    return model.double()


def images(size: int = 9):
    return np.random.default_rng(0).normal(size=(len(LABELS), 2, size, size))


@pytest.fixture(scope="module", params=[convolutional, perceptron])
def small(request):
    model = request.param()
    return model, networks.of(model, images())


def in_pytorch(model, x, *, training: bool = False):
    with torch.no_grad():
        return model.train(training)(torch.from_numpy(np.array(x))).numpy()


def gradients(model, x):
    """Gradients of every output of every sample in all parameters, (N, C, P), by PyTorch."""
    model.eval()
    rows = []
    for sample in torch.from_numpy(x):
        outputs = model(sample[None])[0]
        rows.append(
            [
                torch.cat([g.reshape(-1) for g in torch.autograd.grad(f, list(model.parameters()), retain_graph=True)])
                for f in outputs
            ]
        )
    return np.stack([np.stack([g.numpy() for g in row]) for row in rows])


def test_outputs_and_kernels_of_small_networks(small):
    model, network = small
    x, variables = images(), network.variables(model)
    outputs = jax.jit(network.outputs)(variables.params, x, variables.batch_stats)
    # Rounding in float64, in another order.
    np.testing.assert_allclose(outputs, in_pytorch(model, x), rtol=1e-10, atol=1e-12)
    J = gradients(model, x)
    at = NetworkAt.of(network, variables, Dataset.of(x, LABELS, name="images").replace(x))
    dense = np.einsum("ikp,jlp->ijkl", J, J)
    np.testing.assert_allclose(at.output_kernel(), dense, rtol=1e-8, atol=1e-10 * np.abs(dense).max())


def test_training_mode_moves_the_averages_as_there():
    model, x = convolutional(), images()
    # Without dropout, whose draws are others.
    model[4] = torch.nn.Identity()
    network = networks.of(model, x)
    variables = network.variables(model)
    outputs, moved = jax.jit(network.training_outputs)(variables, x)
    np.testing.assert_allclose(outputs, in_pytorch(model, x, training=True), rtol=1e-10, atol=1e-12)
    expected = dict(model.named_buffers())
    assert set(moved) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(moved[name], value.numpy(), rtol=1e-12, err_msg=name)
    assert int(moved["1.num_batches_tracked"]) == 1


def test_dropout_draws_in_training_and_batch_statistics_are_recomputed():
    model, x = convolutional(), images()
    network = networks.of(model, x)
    variables = network.variables(model)
    assert network.couples(variables)
    first, moved = jax.jit(network.training_outputs)(variables, x)
    second, _ = jax.jit(network.training_outputs)(variables._replace(batch_stats=moved), x)
    assert np.abs(first - second).max() > 1e-3
    model[4] = torch.nn.Identity()
    network = networks.of(model, x)
    data = Dataset.of(x, LABELS, name="images")
    assert data.classes == Classes.balanced(3, 2)
    whole = recomputed_statistics(network, network.variables(model), data, Batches(data.classes, None, 0))
    # PyTorch's running variance is unbiased, that of a batch is not.
    mean = in_pytorch(model[:1], data.inputs.astype(float)).mean((0, 2, 3))
    np.testing.assert_allclose(whole.batch_stats["1.running_mean"], mean, rtol=1e-6, atol=1e-8)


def test_a_resnet_and_its_twin_agree():
    model, x = residual(), images(32)[:3]
    # A state that training has moved.
    in_pytorch(model, x, training=True)
    network = networks.of(model, x)
    variables = network.variables(model)
    outputs = jax.jit(network.outputs)(variables.params, x, variables.batch_stats)
    assert np.abs(np.asarray(outputs) - in_pytorch(model, x)).max() < 1e-5
    J = gradients(model, x)
    at = NetworkAt.of(network, variables, Dataset.of(x, np.arange(3), name="images").replace(x))
    dense = np.einsum("ikp,jkp->ij", J, J) / 3
    found = np.asarray(at.output_kernel(outputs="mean"))
    assert np.linalg.norm(found - dense) < 1e-4 * np.linalg.norm(dense)
    W, b = network.head(variables.params)
    np.testing.assert_array_equal(W, model.fc.weight.detach().numpy())
    assert b is not None


class Sorting(torch.nn.Module):
    def forward(self, x):
        return torch.sort(x, dim=-1)[0]


def test_an_unknown_layer_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), Sorting(), torch.nn.Linear(5, 3))
    with pytest.raises(NotImplementedError, match=r"layer '1' \(Sorting\) does aten.sort.*state_dict"):
        networks.of(model, np.zeros((2, 4)))


def test_what_is_refused_in_pytorchs_words():
    with pytest.raises(
        ValueError, match=r"cannot be traced on samples of shape \(9, 9, 2\).*\(channels, height, width"
    ):
        networks.of(convolutional(), images().transpose(0, 2, 3, 1))
    model = perceptron()
    network = networks.of(model, images())
    with pytest.raises(ValueError, match=r"params: expected '3.weight' of shape \(3, 6\).*got \(4, 6\)"):
        network.variables({**model.state_dict(), "3.weight": jnp.zeros((4, 6))})
    with pytest.raises(ValueError, match=r"params: expected '1.bias' among them.*state_dict"):
        network.variables({"1.weight": 0})
    active = torch.nn.Sequential(torch.nn.Flatten(), Always(), torch.nn.Linear(162, 3)).double()
    with pytest.raises(ValueError, match=r"dropout.*training=self.training"):
        networks.of(active, images())
    softmax = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(162, 3), torch.nn.Softmax(1)).double()
    with pytest.raises(ValueError, match=r"last layer.*softmax.*let the network end with its logits"):
        networks.of(softmax, images())


class Always(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5, training=True)
