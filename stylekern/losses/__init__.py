"""Losses of style transfer: of features, of pictures, and of a discriminator's scores."""

from stylekern.losses._base import FeatureLoss
from stylekern.losses.adversarial import AdversarialLoss, MultiScaleDiscriminator
from stylekern.losses.content import ContentLoss
from stylekern.losses.gram import GramLoss, gram_matrix
from stylekern.losses.hybrid import HybridLoss, HybridTerms
from stylekern.losses.perceptual import LossTerms, PerceptualLoss
from stylekern.losses.reconstruction import ReconstructionLoss
from stylekern.losses.remd import REMDLoss
from stylekern.losses.self_similarity import SelfSimilarityLoss
from stylekern.losses.statistics import MeanStdLoss, MomentMatchingLoss
from stylekern.losses.swag import Smoothed, smooth
from stylekern.losses.total_variation import total_variation

__all__ = [
    "AdversarialLoss",
    "ContentLoss",
    "FeatureLoss",
    "GramLoss",
    "HybridLoss",
    "HybridTerms",
    "LossTerms",
    "MeanStdLoss",
    "MomentMatchingLoss",
    "MultiScaleDiscriminator",
    "PerceptualLoss",
    "REMDLoss",
    "ReconstructionLoss",
    "SelfSimilarityLoss",
    "Smoothed",
    "gram_matrix",
    "smooth",
    "total_variation",
]
