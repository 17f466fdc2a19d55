"""The hybrid objective is its paper's sum, of terms that are tested elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stylekern.losses import HybridLoss, MomentMatchingLoss, REMDLoss, SelfSimilarityLoss
from tests.losses.common import assert_equal


@pytest.fixture
def features() -> tuple[Tensor, Tensor, Tensor]:
    """Of a stylised picture, a style of another size, a content."""
    x, content = torch.randn(2, 2, 5, 4, 3, dtype=torch.float64)
    return x, torch.randn(2, 5, 6, 7, dtype=torch.float64), content


@pytest.mark.parametrize("alpha", [1.0, 0.25, 4.0])
@pytest.mark.parametrize("reduction", ["mean", "columns"])
def test_the_terms_are_weighted_as_printed(
    features: tuple[Tensor, Tensor, Tensor], alpha: float, reduction: str
) -> None:
    x, style, content = features
    l_m, l_s = MomentMatchingLoss().between(x, style), REMDLoss().between(x, style)
    l_c = SelfSimilarityLoss(reduction=reduction).between(x, content)
    truth = (alpha * l_m + l_c + 1 / alpha * l_s) / (1 + alpha + 1 / alpha)
    loss = HybridLoss(alpha, reduction=reduction)
    targets = loss.style_target(style), loss.content_target(content)
    assert_equal(loss(x, *targets), truth)
    assert_equal(loss.between(x, style, content), truth)
    terms = loss.terms(x, *targets)
    assert_equal(torch.stack(terms), torch.stack([l_m, l_s, l_c]))
    assert terms.remd == l_s and terms.self_similarity == l_c


def test_the_default_puts_the_terms_on_one_scale(features: tuple[Tensor, Tensor, Tensor]) -> None:
    loss = HybridLoss()
    terms = loss.terms(features[0], loss.style_target(features[1]), loss.content_target(features[2]))
    assert max(terms) < 10 * min(terms)


def test_gradients_are_those_of_differences(features: tuple[Tensor, Tensor, Tensor]) -> None:
    assert torch.autograd.gradcheck(HybridLoss(0.5).between, tuple(x.requires_grad_() for x in features))


def test_it_compiles_in_one_graph(features: tuple[Tensor, Tensor, Tensor]) -> None:
    loss = HybridLoss()
    torch._dynamo.reset()
    compiled = torch.compile(loss.between, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(*features), loss.between(*features))


def test_one_style_serves_many_contents(features: tuple[Tensor, Tensor, Tensor]) -> None:
    x, style, content = features
    one = style[:1]
    assert_equal(HybridLoss().between(x, one, content), HybridLoss().between(x, one.expand(2, -1, -1, -1), content))


def test_bad_input_is_refused(features: tuple[Tensor, Tensor, Tensor]) -> None:
    x, style, content = features
    loss = HybridLoss()
    for alpha in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"alpha must be positive and finite, got {alpha}"):
            HybridLoss(alpha)
    with pytest.raises(TypeError, match="alpha must be a number, got str"):
        HybridLoss("1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"style must be what style_target\(\) returned .* between\(\) takes features"):
        loss(x, style, content)
    with pytest.raises(TypeError, match=r"content what content_target\(\) returned"):
        loss(x, loss.content_target(content), loss.style_target(style))
