"""Flax networks split into features and last layer; the paper's architectures and initialisations."""

from ntkcollapse.choices import NETWORKS
from ntkcollapse.networks.abstract_network import AbstractNetwork, Variables, num_params
from ntkcollapse.networks.catalogue import network
from ntkcollapse.networks.cnn import CNNTrunk, cnn
from ntkcollapse.networks.densenet import DenseNetTrunk, densenet40
from ntkcollapse.networks.frameworks import OwnNetwork, of
from ntkcollapse.networks.gru import GRUTrunk, gru
from ntkcollapse.networks.initialisers import Initialiser
from ntkcollapse.networks.mlp import MLPTrunk, mlp
from ntkcollapse.networks.network import Network
from ntkcollapse.networks.resnet import ResNetTrunk, resnet8, resnet20
from ntkcollapse.networks.vgg import VGGTrunk, vgg11, vgg16
from ntkcollapse.networks.vision_transformer import VisionTransformerTrunk, vision_transformer

__all__ = [
    "NETWORKS",
    "AbstractNetwork",
    "CNNTrunk",
    "DenseNetTrunk",
    "GRUTrunk",
    "Initialiser",
    "MLPTrunk",
    "Network",
    "OwnNetwork",
    "ResNetTrunk",
    "VGGTrunk",
    "Variables",
    "VisionTransformerTrunk",
    "cnn",
    "densenet40",
    "gru",
    "mlp",
    "network",
    "num_params",
    "of",
    "resnet8",
    "resnet20",
    "vgg11",
    "vgg16",
    "vision_transformer",
]
