"""The identity loss is equation 8, and encodes each picture once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stylekern.losses import ReconstructionLoss
from tests.losses.common import TAPS, TinyEncoder, assert_equal


def pictures() -> list[Tensor]:
    """I_cc, I_c, I_ss, I_s; the styles are of another size and batch."""
    return [*torch.rand(2, 2, 3, 8, 12, dtype=torch.float64), *torch.rand(2, 3, 3, 16, 8, dtype=torch.float64)]


def test_it_is_equation_8() -> None:
    encoder = TinyEncoder().double()
    i_cc, i_c, i_ss, i_s = pictures()
    truth = torch.zeros((), dtype=torch.float64)
    for again, picture in ((i_cc, i_c), (i_ss, i_s)):
        ours, theirs = encoder(again, TAPS), encoder(picture, TAPS)
        for n in range(len(picture)):
            loss = 20 * (again[n] - picture[n]).pow(2).sum().sqrt()
            for tap in TAPS[1:]:
                loss += 0.5 * (ours[tap][n] - theirs[tap][n]).pow(2).sum().sqrt()
            truth += loss / len(picture)
    assert_equal(ReconstructionLoss(encoder, TAPS[1:])(i_cc, i_c, i_ss, i_s), truth)


def test_the_weights_are_those_of_the_two_sums() -> None:
    encoder, given = TinyEncoder().double(), pictures()
    images = ReconstructionLoss(encoder, TAPS, image_weight=1, feature_weight=0)(*given)
    features = ReconstructionLoss(encoder, TAPS, image_weight=0, feature_weight=1)(*given)
    both = ReconstructionLoss(encoder, TAPS, image_weight=3, feature_weight=5)(*given)
    assert_equal(both, 3 * images + 5 * features)


def test_each_picture_is_encoded_once() -> None:
    encoder = TinyEncoder().double()
    ReconstructionLoss(encoder, TAPS)(*pictures())
    assert sum(count for count, _ in encoder.calls) == 2 + 2 + 3 + 3
    assert all(taps == TAPS for _, taps in encoder.calls)


def test_the_default_layers_are_the_papers() -> None:
    assert ReconstructionLoss(TinyEncoder()).taps == ("relu2_1", "relu3_1", "relu4_1", "relu5_1")
    with pytest.raises(ValueError, match=r"features for relu2_1, .*got none for \['relu4_1', 'relu5_1'\]"):
        ReconstructionLoss(TinyEncoder().double())(*pictures())


def test_gradients_reach_the_reconstructions_and_a_perfect_one_has_none() -> None:
    encoder = TinyEncoder().double()
    i_cc, i_c, i_ss, i_s = pictures()
    i_cc, i_ss = i_c.clone().requires_grad_(), i_ss.requires_grad_()
    ReconstructionLoss(encoder, TAPS)(i_cc, i_c, i_ss, i_s).backward()
    assert i_cc.grad is not None and (i_cc.grad == 0).all()
    assert i_ss.grad is not None and i_ss.grad.isfinite().all() and i_ss.grad.abs().sum() > 0


def test_gradients_are_those_of_differences() -> None:
    encoder = TinyEncoder().double()
    i_c, i_s = torch.rand(2, 1, 3, 4, 4, dtype=torch.float64)
    again = [torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = ReconstructionLoss(encoder, TAPS)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, i_c, b, i_s), again)


def test_under_autocast_the_norms_are_in_float32() -> None:
    encoder = TinyEncoder()
    i_cc, i_c, i_ss, i_s = (x.float() for x in pictures())
    truth = torch.zeros((), dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ReconstructionLoss(encoder, TAPS, image_weight=0)(i_cc, i_c, i_ss, i_s)
        for again, picture in ((i_cc, i_c), (i_ss, i_s)):
            ours, theirs = encoder(again, TAPS), encoder(picture, TAPS)
            for tap in TAPS:
                assert ours[tap].dtype == torch.bfloat16
                difference = ours[tap].double() - theirs[tap].double()
                truth += 0.5 * difference.square().sum((1, 2, 3)).sqrt().mean()
    assert value.dtype == torch.float32
    assert_equal(value, truth)


def test_bad_input_is_refused() -> None:
    i_cc, i_c, i_ss, i_s = pictures()
    loss = ReconstructionLoss(TinyEncoder().double(), TAPS)
    with pytest.raises(ValueError, match=r"content_again must be of content's shape \[2, 3, 8, 12\], got \[2, 3, 8"):
        loss(i_cc[..., :10], i_c, i_ss, i_s)
    with pytest.raises(ValueError, match=r"style must be RGB \[N, 3, H, W\] in \[0, 1\], got \[3, 1, 16, 8\]"):
        loss(i_cc, i_c, i_ss, i_s[:, :1])
    for taps in ((), "relu1_1", ("relu1_1", "relu1_1")):
        with pytest.raises(ValueError, match="taps must be different names of layers"):
            ReconstructionLoss(TinyEncoder(), taps)
    with pytest.raises(TypeError, match=r"encoder must be a network such as stylekern.encoders.vgg19\(\), .* got str"):
        ReconstructionLoss("vgg19", TAPS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image_weight must be finite, got nan"):
        ReconstructionLoss(TinyEncoder(), TAPS, image_weight=float("nan"))
