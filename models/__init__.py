"""Builders of the networks that tests and experiments explain.

Each builder takes the path of a weight file as `weights` (None: random weights), so
`tfexplain explain models:squeezenet --weights FILE` explains one from the root of a checkout.
The builders for MNIST also take the word "mnist", which means a file of `models/trained`.

* `models.images`: the preprocessing of each network, and how a photograph becomes a square;
* `models.datasets`: CIFAR-10, MNIST and folders of photographs as arrays;
* `models.weights`: the loader of weight files;
* `models.train`: recipes, as `python -m models.train cifar10 --out FILE`.
"""

from models.cifar_cnn import cifar_cnn
from models.cifar_resnet import cifar_resnet20, cifar_resnet32, cifar_resnet44, cifar_resnet56
from models.googlenet import LocalResponseNormalization, googlenet
from models.lenet5 import lenet5
from models.mnist_cnn import mnist_cnn
from models.mobilenet import mobilenet
from models.pooled_mlp import pooled_mlp
from models.resnet50 import resnet50
from models.squeezenet import squeezenet
from models.vgg16 import vgg16

__all__ = [
    "LocalResponseNormalization",
    "cifar_cnn",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "googlenet",
    "lenet5",
    "mnist_cnn",
    "mobilenet",
    "pooled_mlp",
    "resnet50",
    "squeezenet",
    "vgg16",
]
