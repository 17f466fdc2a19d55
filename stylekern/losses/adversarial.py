"""Adversarial training: the multi-scale discriminator and its losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylekern.losses._base import at_least_float32
from stylekern.losses._encoder import check_images
from stylekern.ops._checks import check_count, check_option, check_tensor, shape


class MultiScaleDiscriminator(nn.Module):
    r"""Patch discriminators on an image pyramid (pix2pixHD, Wang et al. 2018, section 3.2).

    "Learning dynamic style kernels ..." adopts it for L_adv. Each scale has a network of its own: 4 x 4 convolutions,
    `layers` of stride 2 and two of stride 1, padding 2, leaky ReLU of slope 0.2, and instance normalisation without
    parameters except in the first and the last. Between two scales lies an average over 3 x 3 with stride 2. Weights
    start as N(0, 0.02^2), as there.

    Args:
        scales: Of the pyramid.
        channels: Of the first convolution; each of the next has twice as many, up to 512.
        layers: Convolutions of stride 2. 3 sees patches of 70 x 70 pixels at each scale.

    Raises:
        TypeError: What is no integer.
        ValueError: Less than one scale, channel or layer.
    """

    def __init__(self, scales: int = 3, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        for name, value in (("scales", scales), ("channels", channels), ("layers", layers)):
            check_count("MultiScaleDiscriminator", name, value)
        self.discriminators = nn.ModuleList(_patch_discriminator(channels, layers) for _ in range(scales))

    def forward(self, images: Tensor) -> list[Tensor]:
        """RGB images [N, 3, H, W] to maps of scores [N, 1, h, w], one for each scale, the finest first.

        Raises:
            ValueError: Not [N, 3, H, W]; pictures of less than two pixels a side at the coarsest scale, which instance
                normalisation leaves nothing of.
            TypeError: Not a tensor, or not of floating point.
        """
        check_images("MultiScaleDiscriminator", "images", images)
        scales = len(self.discriminators)
        least = 2 ** (scales - 1) + 1
        if min(images.shape[2:]) < least:
            raise ValueError(
                f"MultiScaleDiscriminator: images must be at least {least} x {least} for {scales} scales, got "
                f"{shape(images)}; resize them, or use fewer scales"
            )
        scores: list[Tensor] = []
        for discriminator in self.discriminators:
            if scores:
                images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
            scores.append(discriminator(images))
        return scores


class AdversarialLoss:
    r"""The two sides of adversarial training, on a discriminator's scores.

    With real and fake scores r and f, means over each map::

        least_squares:  generator mean (f - 1)^2    discriminator (mean (r - 1)^2 + mean f^2) / 2
        hinge:          generator -mean f           discriminator mean max(0, 1 - r) + mean max(0, 1 + f)

    The maps of several scales are added, as in pix2pixHD. "Learning dynamic style kernels ..." names pix2pixHD's
    discriminator and no loss; "least_squares" is pix2pixHD's (Mao et al. 2017), "hinge" that of Lim & Ye 2017.

    Args:
        kind: "least_squares" or "hinge".

    Means are in float32 or better.

    Raises:
        ValueError: An unknown kind.
    """

    def __init__(self, kind: str = "least_squares") -> None:
        check_option("AdversarialLoss", "kind", kind, ("least_squares", "hinge"))
        self.kind = kind

    def generator(self, fake_scores: Tensor | Sequence[Tensor]) -> Tensor:
        """What the generator minimises, [], of the scores of its own pictures, one map or one for each scale.

        Raises:
            ValueError: No maps.
            TypeError: Not tensors of floating point.
        """
        least_squares = self.kind == "least_squares"
        losses = [(f - 1).square().mean() if least_squares else -f.mean() for f in _maps("fake_scores", fake_scores)]
        return torch.stack(losses).sum()

    def discriminator(self, real_scores: Tensor | Sequence[Tensor], fake_scores: Tensor | Sequence[Tensor]) -> Tensor:
        """What the discriminator minimises, [].

        `fake_scores` are of pictures that were detached from the generator.

        Raises:
            ValueError: No maps, or not as many of both.
            TypeError: Not tensors of floating point.
        """
        real, fake = _maps("real_scores", real_scores), _maps("fake_scores", fake_scores)
        if len(real) != len(fake):
            raise ValueError(
                f"AdversarialLoss: real_scores and fake_scores must be of as many scales, got {len(real)} and "
                f"{len(fake)}"
            )
        if self.kind == "least_squares":
            losses = [((r - 1).square().mean() + f.square().mean()) / 2 for r, f in zip(real, fake, strict=True)]
        else:
            losses = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
        return torch.stack(losses).sum()


def _patch_discriminator(channels: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=2), nn.LeakyReLU(0.2)]
    for k in range(1, layers + 1):
        wider = min(2 * channels, 512)
        parts += [
            nn.Conv2d(channels, wider, 4, stride=2 if k < layers else 1, padding=2),
            nn.InstanceNorm2d(wider),
            nn.LeakyReLU(0.2),
        ]
        channels = wider
    parts.append(nn.Conv2d(channels, 1, 4, padding=2))
    for part in parts:
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.02)
    return nn.Sequential(*parts)


def _maps(name: str, scores: Tensor | Sequence[Tensor]) -> list[Tensor]:
    maps = [scores] if isinstance(scores, Tensor) else list(scores)
    if not maps:
        raise ValueError(f"AdversarialLoss: {name} must hold at least one map of scores, got none")
    for scores_of_one in maps:
        check_tensor("AdversarialLoss", name, scores_of_one)
    return [at_least_float32(scores_of_one) for scores_of_one in maps]
