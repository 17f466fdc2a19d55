"""What all losses of features have in common: batches, guides, dtypes, gradients, compilation, messages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stylekern.losses import (
    ContentLoss,
    FeatureLoss,
    GramLoss,
    MeanStdLoss,
    MomentMatchingLoss,
    REMDLoss,
    SelfSimilarityLoss,
    Smoothed,
)
from tests.losses.common import assert_equal
from tests.ops.cases import relative_error

LOSSES: dict[str, FeatureLoss] = {
    "gram": GramLoss(),
    "gram-none": GramLoss("none"),
    "gram-gatys": GramLoss("gatys"),
    "gram-relative": GramLoss("relative"),
    "content": ContentLoss(),
    "content-sum": ContentLoss("sum"),
    "content-euclidean": ContentLoss("euclidean"),
    "content-relative": ContentLoss("relative"),
    "mean-std": MeanStdLoss(),
    "mean-std-mse": MeanStdLoss("mse"),
    "moments": MomentMatchingLoss(),
    "remd": REMDLoss(),
    "remd-euclidean": REMDLoss("euclidean", max_positions=9),
    "self-similarity": SelfSimilarityLoss(),
    "self-similarity-columns": SelfSimilarityLoss(reduction="columns", max_positions=9),
    "smoothed-content": Smoothed(ContentLoss("half")),
    "smoothed-gram": Smoothed(GramLoss("gatys"), "tanh"),
}
GUIDED = [name for name in LOSSES if "remd" not in name and "self" not in name]
ANY_SIZE = [name for name in LOSSES if "content" not in name and "self" not in name and name != "gram-none"]
#: Weighing both pictures; losses of content have one guide, that of `forward`.
GUIDED_TARGETS = [name for name in GUIDED if "content" not in name]

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def guides_for(name: str, guide: Tensor) -> tuple[Tensor, Tensor | None]:
    return guide, guide if name in GUIDED_TARGETS else None


@every_loss
def test_a_batch_is_the_mean_of_its_samples(loss: FeatureLoss) -> None:
    x, y = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64)
    each = [loss.between(x[k, None], y[k, None]) for k in range(3)]
    assert loss.between(x, y).shape == ()
    assert_equal(loss.between(x, y), sum(each) / 3)
    assert len({round(value.item(), 12) for value in each}) == 3


@every_loss
def test_one_target_serves_a_batch(loss: FeatureLoss) -> None:
    x, y = torch.randn(3, 5, 4, 6, dtype=torch.float64), torch.randn(1, 5, 4, 6, dtype=torch.float64)
    expanded = y.expand(3, -1, -1, -1)
    assert_equal(loss(x, loss.target(y)), loss.between(x, expanded))


@every_loss
def test_equal_features_are_at_no_distance_and_have_a_finite_gradient(loss: FeatureLoss) -> None:
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    value = loss.between(x, x.detach())
    (gradient,) = torch.autograd.grad(value, x)
    floor = (1e-5 / 5) ** 0.5 if isinstance(loss, REMDLoss) and loss.metric == "euclidean" else 0.0  # the op's clamp
    assert abs(value.item() - floor) < 1e-12
    assert gradient.isfinite().all()


@every_loss
def test_gradients_of_features_and_target_are_those_of_differences(loss: FeatureLoss) -> None:
    x, y = torch.randn(2, 2, 4, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss.between, (x.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize("name", GUIDED)
def test_gradients_with_a_guide_are_those_of_differences(name: str) -> None:
    x, y = torch.randn(2, 2, 4, 3, 5, dtype=torch.float64)
    guide, other_guide = guides_for(name, torch.rand(2, 1, 3, 5, dtype=torch.float64))
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: LOSSES[name].between(a, b, guide, other_guide), inputs)


@pytest.mark.parametrize("name", ANY_SIZE)
def test_a_picture_of_another_size_is_a_style_too(name: str) -> None:
    x = torch.randn(1, 5, 4, 6)
    assert LOSSES[name].between(x, torch.randn(1, 5, 7, 3)) > 1e-6
    if name.startswith(("gram", "moments", "smoothed")):  # a mean over the positions
        assert LOSSES[name].between(x, torch.cat([x, x], 3)) < 1e-6


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_features_of_16_bits_are_compared_in_float32(loss: FeatureLoss, dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 2, 5, 4, 6).to(dtype)
    truth = loss.between(x.double(), y.double())
    given = loss.between(x.requires_grad_(), y)
    assert given.dtype == torch.float32 and truth.dtype == torch.float64
    assert relative_error(given, truth) < 1e-5
    (gradient,) = torch.autograd.grad(given, x)
    assert gradient.dtype == dtype and gradient.isfinite().all()


@every_loss
def test_autocast_changes_nothing(loss: FeatureLoss) -> None:
    x, y = torch.randn(2, 2, 5, 4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = loss.between(x, y)
    torch.testing.assert_close(given, loss.between(x, y), rtol=0, atol=0)


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("n", [1, 2], ids=["shared", "each"])
def test_a_guide_of_ones_is_no_guide(name: str, n: int) -> None:
    x, y = torch.randn(2, 2, 5, 4, 6, dtype=torch.float64)
    guide, other_guide = guides_for(name, torch.ones(n, 1, 4, 6))
    loss = LOSSES[name]
    assert_equal(loss.between(x, y, guide, other_guide), loss.between(x, y))


@pytest.mark.parametrize("name", GUIDED)
def test_a_guide_of_a_rectangle_is_a_crop(name: str) -> None:
    x, y = torch.randn(2, 2, 5, 4, 6, dtype=torch.float64)
    rectangle = torch.zeros(1, 1, 4, 6)
    rectangle[..., 1:3, 2:6] = 1
    guide, other_guide = guides_for(name, rectangle)
    cropped = LOSSES[name].between(x[..., 1:3, 2:6], y[..., 1:3, 2:6])
    assert_equal(LOSSES[name].between(x, y, guide, other_guide), cropped)
    assert not torch.isclose(LOSSES[name].between(x, y), cropped)


@pytest.mark.parametrize("name", [name for name in GUIDED_TARGETS if name != "gram-none"])
def test_guides_of_two_regions_compare_one_with_the_other(name: str) -> None:
    x, y = torch.randn(2, 5, 4, 6, dtype=torch.float64), torch.randn(2, 5, 3, 8, dtype=torch.float64)
    own, other = torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 3, 8)
    own[..., :2, :], other[..., 5:] = 0.3, 4  # the scale of a guide is of no account
    crops = LOSSES[name].between(x[:, :, :2], y[..., 5:])
    assert_equal(LOSSES[name].between(x, y, own, other), crops)


def test_weights_of_whole_numbers_repeat_positions() -> None:
    x, y = torch.randn(2, 1, 5, 3, 4, dtype=torch.float64)
    times = torch.randint(0, 4, (12,))
    times[:2] = 1
    repeated = x.flatten(2).repeat_interleave(times, 2)[:, :, None]
    guide = times.double().view(1, 1, 3, 4)
    for name in ("gram", "gram-gatys", "gram-none", "moments"):
        assert_equal(LOSSES[name].between(x, y, guide), LOSSES[name].between(repeated, y))


@every_loss
def test_compiles_in_one_graph(loss: FeatureLoss) -> None:
    x, y = torch.randn(2, 2, 5, 4, 6)
    torch._dynamo.reset()
    compiled = torch.compile(loss.between, fullgraph=True, backend="aot_eager")
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    given, eager = compiled(own, y), loss.between(other, y)
    assert_equal(given, eager)
    given.backward()
    eager.backward()
    assert_equal(own.grad, other.grad)


@every_loss
@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.rand(5, 4, 6), ValueError, r"features must be \[N, C, h, w\], none of them 0, got \[5, 4, 6\]"),
        (torch.rand(1, 5, 0, 6), ValueError, r"none of them 0, got \[1, 5, 0, 6\]"),
        (torch.ones(1, 5, 4, 6, dtype=torch.int64), TypeError, r"floating point, got torch\.int64; call \.float\(\)"),
        ([1.0], TypeError, "must be a tensor, got list"),
    ],
)
def test_features_that_are_none_are_refused(
    loss: FeatureLoss, features: Tensor, error: type[Exception], message: str
) -> None:
    if isinstance(loss, Smoothed):  # which smooths first
        message = message.replace("features must be", "x must be")
    with pytest.raises(error, match=message):
        loss.target(features)
    with pytest.raises(error, match=message):
        loss(features, loss.target(torch.rand(1, 5, 4, 6)))


@every_loss
def test_targets_that_do_not_fit_are_refused(loss: FeatureLoss) -> None:
    x = torch.rand(3, 5, 4, 6)
    with pytest.raises(ValueError, match="a target must be of batch 1 or of the features' batch 3, got batch 2"):
        loss.between(x, torch.rand(2, 5, 4, 6))
    with pytest.raises(ValueError, match="batch 1, got batch 3"):
        loss.between(x[:1], x)
    with pytest.raises(TypeError, match=r"what target\(\) returned, a tuple of tensors, got Tensor; between\(\) takes"):
        loss(x, x)
    for other in ((), (torch.rand(3, 5), torch.rand(3, 5), torch.rand(3, 5))):
        with pytest.raises(TypeError, match=r"what target\(\) of this loss returned, got tensors of \("):
            loss(x, other)
    if not isinstance(loss, SelfSimilarityLoss):
        with pytest.raises(ValueError, match=r"must have the target's 4 channels, got \[3, 5, 4, 6\]; both must come"):
            loss.between(x, torch.rand(3, 4, 4, 6))


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("shape", [(1, 1, 4, 5), (2, 1, 4, 6), (1, 5, 4, 6), (4, 6)], ids=str)
def test_a_guide_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(3, 5, 4, 6)
    with pytest.raises(ValueError, match=r"guide must be \[1 or 3, 1, 4, 6\] for features \[3, 5, 4, 6\], got .*resiz"):
        LOSSES[name].between(x, x, torch.ones(shape))
    with pytest.raises(TypeError, match=r"guide must be of floating point, got torch\.bool"):
        LOSSES[name].between(x, x, torch.ones(1, 1, 4, 6, dtype=torch.bool))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - set(GUIDED)))
def test_a_loss_without_guides_says_so(name: str) -> None:
    x, guide = torch.rand(1, 5, 4, 6), torch.ones(1, 1, 4, 6)
    for guides in ((guide, None), (None, guide)):
        with pytest.raises(ValueError, match=f"{type(LOSSES[name]).__name__} takes no guide: .* crop the features"):
            LOSSES[name].between(x, x, *guides)


def test_a_subclass_must_say_what_it_compares() -> None:
    class Nothing(FeatureLoss):
        pass

    with pytest.raises(NotImplementedError, match="Nothing must implement _keep"):
        Nothing().target(torch.rand(1, 2, 3, 3))
    with pytest.raises(NotImplementedError, match="Nothing must implement _distance"):
        Nothing()(torch.rand(1, 2, 3, 3), (torch.rand(1, 2),))
