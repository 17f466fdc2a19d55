"""Identity: what a network makes of a picture that is content and style at once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stylekern.losses._base import at_least_float32, safe_sqrt
from stylekern.losses._encoder import Encoder, check_encoder, check_images, encode
from stylekern.ops._checks import check_finite, shape


class ReconstructionLoss(nn.Module):
    r"""L_rec of "Learning dynamic style kernels for artistic style transfer", eq. 8, the identity loss of SANet.

    ::

        L_rec = image_weight   (|I_cc - I_c|_2 + |I_ss - I_s|_2)
              + feature_weight sum over taps of (|phi(I_cc) - phi(I_c)|_2 + |phi(I_ss) - phi(I_s)|_2)

    I_cc is what the network makes of the content I_c as its own style, I_ss of the style I_s as its own content. The
    norms are those printed, neither squared nor divided by the size, of each sample; the result is their mean over the
    batch. Their gradient at equal pictures is 0.

    Args:
        encoder: phi, `encoder(images, taps) -> {tap: features}` for RGB images in [0, 1]. If it is a module, it becomes
            a submodule of the loss, and its parameters stay as they are: freeze them.
        taps: The paper's layers.
        image_weight: lambda_rec1; 20 is the paper's.
        feature_weight: lambda_rec2; 0.5 is the paper's.

    Norms are in float32 or better, also under autocast, where the encoder's features may be of 16 bits.

    Raises:
        TypeError: An encoder that cannot be called; a weight that is no number.
        ValueError: No taps, or a tap that is there twice; a weight that is not finite.
    """

    def __init__(
        self,
        encoder: Encoder,
        taps: Sequence[str] = ("relu2_1", "relu3_1", "relu4_1", "relu5_1"),
        *,
        image_weight: float = 20.0,
        feature_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if isinstance(taps, str) or not taps or len(set(taps)) != len(taps):
            raise ValueError(f"ReconstructionLoss: taps must be different names of layers, got {taps!r}")
        check_encoder("ReconstructionLoss", encoder)
        for name, weight in (("image_weight", image_weight), ("feature_weight", feature_weight)):
            check_finite("ReconstructionLoss", name, weight)
        self.encoder, self.taps = encoder, tuple(taps)
        self.image_weight, self.feature_weight = image_weight, feature_weight

    def extra_repr(self) -> str:
        return f"taps={self.taps}, image_weight={self.image_weight}, feature_weight={self.feature_weight}"

    def forward(self, content_again: Tensor, content: Tensor, style_again: Tensor, style: Tensor) -> Tensor:
        """I_cc, I_c, I_ss and I_s, RGB [N, 3, H, W] in [0, 1], to the loss []. Each is encoded once.

        Contents and styles may be of different sizes and batches.

        Raises:
            ValueError: Images that are not [N, 3, H, W]; a reconstruction of another shape than its picture; a tap that
                the encoder does not give.
            TypeError: Not a tensor, or not of floating point.
        """
        pairs = (("content", content_again, content), ("style", style_again, style))
        for name, again, picture in pairs:
            check_images("ReconstructionLoss", name, picture)
            check_images("ReconstructionLoss", f"{name}_again", again)
            if again.shape != picture.shape:
                raise ValueError(
                    f"ReconstructionLoss: {name}_again must be of {name}'s shape {shape(picture)}, got {shape(again)}; "
                    "crop what the decoder's upsampling has added"
                )
        losses = [self._pair(again, picture) for _, again, picture in pairs]
        return losses[0] + losses[1]

    def _pair(self, again: Tensor, picture: Tensor) -> Tensor:
        ours, theirs = (encode("ReconstructionLoss", self.encoder, x, self.taps) for x in (again, picture))
        loss = self.image_weight * _norm(again, picture)
        for tap in self.taps:
            loss = loss + self.feature_weight * _norm(ours[tap], theirs[tap])
        return loss


def _norm(a: Tensor, b: Tensor) -> Tensor:
    return safe_sqrt((at_least_float32(a) - at_least_float32(b)).square().flatten(1).sum(1)).mean()
