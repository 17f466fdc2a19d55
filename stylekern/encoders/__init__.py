"""Networks whose features describe a picture, with named taps; see :class:`Encoder`."""

from stylekern.encoders._encoder import Encoder
from stylekern.encoders.random_multi_scale import RandomMultiScale
from stylekern.encoders.resnet import ResNet, resnet50
from stylekern.encoders.vgg import VGG, vgg16, vgg19
from stylekern.encoders.weights import read_weights

__all__ = ["VGG", "Encoder", "RandomMultiScale", "ResNet", "read_weights", "resnet50", "vgg16", "vgg19"]
