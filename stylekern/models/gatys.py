"""Style transfer by optimising a picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from stylekern.encoders import VGG, Encoder, RandomMultiScale, ResNet
from stylekern.losses import ContentLoss, FeatureLoss, GramLoss, LossTerms, PerceptualLoss, Smoothed
from stylekern.ops._checks import check_finite, is_integer

Watch = Callable[[int, LossTerms, Tensor], None]
INITS = ("content", "noise")
OPTIMIZERS = ("lbfgs", "adam")


class Gatys(nn.Module):
    r"""Gatys et al. 2016: the picture itself is what is optimised.

    ::

        argmin over I of content_weight L_c(I_c, I) + style_weight L_s(I_s, I)      "... activation smoothing", eq. 1

    with L_c and L_s of the features of a fixed encoder, any of :mod:`stylekern.encoders`. :meth:`preset` has the
    papers' settings.

    Args:
        encoder: None: :class:`stylekern.encoders.RandomMultiScale`, which needs no weights.
        content: Taps of the content loss and their weights. None: what suits the encoder, see :meth:`taps_for`. {} for
            a texture: the content is then the size, and what is started from.
        style: The same of the style loss.
        content_loss, style_loss: None: `ContentLoss("relative")` and `GramLoss("relative")`, whose values do not depend
            on the encoder's scale or the picture's size. The presets have the papers' own.
        content_weight, style_weight, variation_weight: alpha and beta of eq. 1, and of the total variation. With the
            relative losses, 1 and 10 give a picture that has the style's colours and strokes and the content's shapes.
        smoothing: Of the activations (SWAG, eq. 13 and 14), of both losses: "softmax", "tanh", "softsign", "scale" or
            None; see :class:`stylekern.losses.Smoothed`.
        optimizer: "lbfgs", which looks better after as many steps, or "adam", which needs less memory.
        lr: Its learning rate; None: 1 for L-BFGS, 0.02 for Adam.
        steps: L-BFGS counts evaluations of the loss.
        init: "content", or "noise": normal around 0.5.
        seed: Of the noise.

    Several threads may call the same one at once: what a call encodes is its own.

    Raises:
        TypeError, ValueError: Unknown options; numbers that are none, or out of range; an encoder without usual taps;
            what :class:`stylekern.losses.PerceptualLoss` refuses.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        content: Mapping[str, float] | None = None,
        style: Mapping[str, float] | None = None,
        content_loss: FeatureLoss | None = None,
        style_loss: FeatureLoss | None = None,
        content_weight: float = 1.0,
        style_weight: float = 10.0,
        variation_weight: float = 0.0,
        smoothing: str | None = None,
        optimizer: str = "lbfgs",
        lr: float | None = None,
        steps: int = 400,
        init: str = "content",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, given, known in (("optimizer", optimizer, OPTIMIZERS), ("init", init, INITS)):
            if given not in known:
                raise ValueError(f"Gatys: {name} must be one of {', '.join(known)}, got {given!r}")
        for name, number in (("steps", steps), ("seed", seed)):
            if not is_integer(number):
                raise TypeError(f"Gatys: {name} must be an integer, got {number!r}")
        if lr is not None:
            check_finite("Gatys", "lr", lr)
        if steps < 1 or (lr is not None and not lr > 0):
            raise ValueError(f"Gatys: steps must be at least 1 and lr positive, got steps={steps}, lr={lr}")
        if encoder is None:
            with torch.inference_mode(False):  # what is made in inference mode has no gradients ever after
                encoder = RandomMultiScale()
        if content is None or style is None:
            usual = self.taps_for(encoder)
            content, style = (usual[i] if taps is None else taps for i, taps in enumerate((content, style)))
        losses = [content_loss or ContentLoss("relative"), style_loss or GramLoss("relative")]
        if smoothing is not None:
            losses = [Smoothed(loss, smoothing) for loss in losses]
        self.optimizer, self.steps, self.init, self.seed = optimizer, steps, init, seed
        self.lr = lr if lr is not None else 1.0 if optimizer == "lbfgs" else 0.02
        self.loss = PerceptualLoss(
            encoder,
            content,
            style,
            *losses,
            content_weight=content_weight,
            style_weight=style_weight,
            total_variation_weight=variation_weight,
        )

    @staticmethod
    def taps_for(encoder: Encoder) -> tuple[dict[str, float], dict[str, float]]:
        """Taps for content and style that suit an encoder, of weight 1 each.

        VGG: conv4_1 (the paper; Gatys has conv4_2), and conv1_1 to conv5_1. ResNet: SWAG's stages conv3 and conv4,
        `layer2` and `layer3`; the content at the last of them. Random filters: the two coarsest levels, and all.
        """
        if isinstance(encoder, RandomMultiScale):
            return dict.fromkeys(encoder.taps[-2:], 1.0), dict.fromkeys(encoder.taps, 1.0)
        if isinstance(encoder, ResNet):
            stages = [tap for tap in encoder.taps if tap.startswith(("layer2.", "layer3."))]
            if stages:
                return {stages[-1]: 1.0}, dict.fromkeys(stages, 1.0)
        elif isinstance(encoder, VGG) and "conv5_1" in encoder.channels:
            return {"conv4_1": 1.0}, dict.fromkeys([f"conv{block}_1" for block in range(1, 6)], 1.0)
        raise ValueError(
            f"Gatys: there are no usual taps for this {type(encoder).__name__}, which reaches no conv5_1 (VGG) and no "
            "layer2 (ResNet); name them with content= and style="
        )

    @classmethod
    def preset(cls, name: str, encoder: Encoder, **changes: Any) -> Gatys:
        """A paper's settings.

        - "artistic": "... activation smoothing", 6.1: VGG-19, Gram matrices and squared errors as printed (eq. 2 to 4),
          alpha 1, beta 1000, L-BFGS with rate 1, 400 steps from the content.
        - "daytime": the same with beta 1 and weight 5 for conv1_1.
        - "swag": 6.4: ResNet-50, eq. 13 and 14 with softmax, content 1, style 1e12; `smoothing=` takes the others.
        - "report": "INFO8010: Style Transfer", table I: squared errors, Gram matrices normalised for the layer sizes,
          content 0.01, style 5, Adam with rate 0.02, 5000 steps from the content.

        Args:
            name: One of these.
            encoder: Of the kind that is named, with weights.
            changes: Of the arguments of the class.

        Raises:
            ValueError: An unknown name; an encoder of another kind than the preset's.
        """
        style = {f"conv{block}_1": 1.0 for block in range(1, 6)}
        printed: dict[str, Any] = {"content_loss": ContentLoss("sum"), "style_loss": GramLoss("none")}
        printed["style_weight"] = 1000.0
        presets: dict[str, dict[str, Any]] = {
            "artistic": printed,
            "daytime": printed | {"style_weight": 1.0, "style": style | {"conv1_1": 5.0}},
            "swag": {
                "content_loss": ContentLoss("half"),
                "style_loss": GramLoss("gatys"),
                "style_weight": 1e12,
                "smoothing": "softmax",
            },
            "report": {
                "content_loss": ContentLoss("sum"),
                "style_loss": GramLoss("gatys"),
                "content_weight": 0.01,
                "style_weight": 5.0,
                "optimizer": "adam",
                "steps": 5000,
            },
        }
        if name not in presets:
            raise ValueError(f"Gatys: preset must be one of {', '.join(presets)}, got {name!r}")
        wanted = ResNet if name == "swag" else VGG | ResNet if name == "report" else VGG
        if not isinstance(encoder, wanted):
            raise ValueError(f"Gatys: the preset {name} is for {wanted}, got {type(encoder).__name__}")
        return cls(encoder, **(presets[name] | changes))

    def forward(self, content: Tensor, style: Tensor, *, watch: Watch | None = None) -> Tensor:
        """Content [N, 3, H, W] and style [N or 1, 3, H', W'] to the picture [N, 3, H, W] of the lowest loss, in [0, 1].

        A batch is one problem: its loss, the mean over its pictures, is what the lowest is of, and L-BFGS's steps
        depend on all of them. Adam's steps do not.

        Args:
            content, style: RGB in [0, 1], of any sizes that the encoder takes.
            watch: Called after each evaluation with its number from 0, the loss's terms, and the picture that has them,
                detached and its own to keep. What it raises ends the optimisation.

        Raises:
            TypeError, ValueError: What the encoder or :class:`stylekern.losses.PerceptualLoss` refuses; contents and
                styles that are not as many; a loss that is not finite where it starts.

        Warns:
            RuntimeWarning: The first loss was not 0, and no evaluation was better, so that what was started from is
                returned. It is so where the loss has no gradient, as with relative losses of a flat picture.
        """
        pictures = (content, style)
        if all(isinstance(x, Tensor) and x.dim() == 4 for x in pictures) and style.shape[0] not in (1, len(content)):
            raise ValueError(
                f"Gatys: style must be one picture or as many as content, {len(content)}, got {len(style)}"
            )
        with torch.inference_mode(False):
            loss = copy(self.loss)  # with targets of its own, and what it has of modules
            if loss.content:
                loss.set_content(content)
            if loss.style:
                loss.set_style(style)
            picture = self.start(content)
            best, lowest = picture.detach().clone(), torch.full((), torch.inf, device=content.device)
            first = lowest
            for step, (terms, seen) in enumerate(self.run(loss, picture)):
                if step == 0:
                    first = terms.total
                    _check_finite(terms)
                best, lowest = _better(terms.total, seen, lowest, best)
                if watch is not None:
                    watch(step, terms, seen)
            with torch.no_grad():
                best, lowest = _better(loss(picture).total, picture.detach(), lowest, best)
        if first > 0 and not lowest < first:
            warnings.warn(
                f"Gatys: of {self.steps} evaluations none was better than the first, and what was started from is "
                "returned. Relative losses have no gradient at pictures without features, such as flat ones: for a "
                'texture, content={} and init="noise" leave the content out; other losses take any picture.',
                RuntimeWarning,
                stacklevel=4,  # past the two frames of nn.Module, to the call
            )
        return best.clamp(0, 1)

    def start(self, content: Tensor) -> Tensor:
        """The picture that the optimisation starts from."""
        if self.init == "noise":
            generator = torch.Generator().manual_seed(self.seed)
            content = (0.5 + 0.1 * torch.randn(content.shape, generator=generator)).to(content)
        return content.detach().clone(memory_format=torch.contiguous_format).requires_grad_()

    def run(self, loss: PerceptualLoss, picture: Tensor) -> Iterator[tuple[LossTerms, Tensor]]:
        """Optimises the picture in place; gives each evaluation's terms and a copy of the picture that has them."""
        seen: list[tuple[LossTerms, Tensor]] = []

        def evaluate() -> Tensor:
            with torch.enable_grad():
                terms: LossTerms = loss(picture)
                (grad,) = torch.autograd.grad(terms.total, picture)
            picture.grad = grad.contiguous()  # L-BFGS views it as a vector
            seen.append((LossTerms(*(term.detach() for term in terms)), picture.detach().clone()))
            return terms.total.detach()

        if self.optimizer == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam([picture], self.lr)
        else:
            optimizer = torch.optim.LBFGS([picture], self.lr, max_iter=1, tolerance_grad=0, tolerance_change=0)
        for _ in range(self.steps):
            seen.clear()
            optimizer.step(evaluate)  # type: ignore[arg-type]  # a tensor does, as a number would
            yield seen[0]


def _check_finite(terms: LossTerms) -> None:
    """Raises ValueError for a start from which no step leads anywhere."""
    if not torch.isfinite(terms.total):
        values = ", ".join(f"{name} {float(value):.3g}" for name, value in terms._asdict().items())
        raise ValueError(
            f"Gatys: the loss must be finite where it starts, got {values}; pictures and weights must be finite, and a "
            "relative loss needs a target with features, which a black or flat picture may not have"
        )


def _better(total: Tensor, picture: Tensor, lowest: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """The picture of the lower loss, and that loss, without waiting for the device."""
    better = total < lowest
    return torch.where(better, picture, best), torch.where(better, total, lowest)
