"""The networks of the papers, over the operators; see docs/models.md."""

from stylekern.models._model import StyleTransfer
from stylekern.models.adaconv import AdaConv, AdaConvObjective, AttentiveStyleEncoder, KernelPredictor, StyleEncoder
from stylekern.models.adain import AdaIN, AdaINObjective
from stylekern.models.fast import FastObjective, FastTransfer
from stylekern.models.gatys import Gatys
from stylekern.models.safin import SAFIN, SAFINObjective
from stylekern.models.sanet import SANet, SANetObjective
from stylekern.models.style_kernel import StyleKernel, StyleKernelGenerator, StyleKernelObjective
from stylekern.models.vgg_classifier import VGGClassifier

__all__ = [
    "SAFIN",
    "AdaConv",
    "AdaConvObjective",
    "AdaIN",
    "AdaINObjective",
    "AttentiveStyleEncoder",
    "FastObjective",
    "FastTransfer",
    "Gatys",
    "KernelPredictor",
    "SAFINObjective",
    "SANet",
    "SANetObjective",
    "StyleEncoder",
    "StyleKernel",
    "StyleKernelGenerator",
    "StyleKernelObjective",
    "StyleTransfer",
    "VGGClassifier",
]
