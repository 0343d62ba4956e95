"""Builders of the networks that tests and experiments explain.

Each builder takes the path of a weight file as `weights` (None: random weights). The modules
`models.images` and `models.weights` hold the preprocessing and the loader of weight files.
"""

from models.cifar_cnn import cifar_cnn
from models.cifar_resnet import cifar_resnet20, cifar_resnet32, cifar_resnet44, cifar_resnet56
from models.googlenet import LocalResponseNormalization, googlenet
from models.mobilenet import mobilenet
from models.squeezenet import squeezenet

__all__ = [
    "LocalResponseNormalization",
    "cifar_cnn",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "googlenet",
    "mobilenet",
    "squeezenet",
]
