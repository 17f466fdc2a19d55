"""What every operator must refuse, and in which words."""

from __future__ import annotations

import inspect
import itertools
import random
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from stylekern.ops import OPERATORS

from .cases import Case, differentiable, relative_error


class RefusalSuite:
    """A part of OperatorSuite."""

    name: str
    function: Callable[..., Any]
    cases: dict[str, Callable[[], Case]]
    typical: str
    bad: dict[str, tuple[Callable[[], tuple[tuple[Any, ...], dict[str, Any]]], type[Exception], str]]
    call: Callable[[Case], tuple[Tensor, ...]]
    run: Callable[..., list[Tensor]]
    arguments: Callable[[Case], tuple[Any, ...]]
    prepared: Callable[[Sequence[Any]], tuple[Any, ...]]

    def test_a_tensor_is_no_number(self, backend: str) -> None:
        """It would lose its gradient, or its fraction."""
        case = self.cases[self.typical]().to("cpu", torch.float32)
        arguments = inspect.signature(type(self).function).parameters
        named = [name for name in arguments if str(arguments[name].annotation) in ("int", "float")]
        for name, value in itertools.product(sorted(named), (torch.tensor(1), None, "1", [1])):
            with pytest.raises(
                TypeError, match=f"{type(self).function.__name__}: {name} must be an? (number|integer), got"
            ):
                type(self).function(**case.tensors, **(case.options | {name: value}))

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_tensors_that_are_not_dense_are_refused(self) -> None:
        for make in self.cases.values():
            case = make().to("cpu", torch.float32)
            for name, x in case.tensors.items():
                if x is None or x.shape[0] == 0:
                    continue
                layouts = [(x.detach().to_sparse(), "layout torch.sparse_coo")]
                if x.dim() > 1:
                    layouts.append((torch.nested.nested_tensor(list(x.detach())), "a nested one"))
                for other, words in layouts:
                    with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got {words}; call"):
                        self.call(Case(case.tensors | {name: other}, case.options))

    def test_a_refused_call_lets_go_of_its_tensors(self, backend: str) -> None:
        case = self.cases[self.typical]().to("cpu", torch.float32)
        tensors = {k: None if x is None else x.detach().clone() for k, x in case.tensors.items()}
        name, x = next((k, x) for k, x in tensors.items() if x is not None)
        kept, tensors[name] = weakref.ref(x), x.int()
        with pytest.raises(TypeError, match=f"{name} must be float32"):
            self.call(Case(tensors, case.options))
        others = [weakref.ref(x) for x in tensors.values() if x is not None]
        del x, tensors
        assert kept() is None and all(other() is None for other in others)

    def test_bad_input_is_named(self, bad_name: str) -> None:
        make, error, message = self.bad[bad_name]
        arguments, options = make()
        with pytest.raises(error, match=message):
            type(self).function(*arguments, **options)

    def test_saved_tensors_in_another_layout_are_refused_or_no_matter(self, backend: str, device: str) -> None:
        """Hooks may give them back so."""
        case = self.cases[self.typical]().to(device, torch.float32)
        upstream = [torch.randn_like(y) for y in differentiable(self.call(case))]
        expected = self.run(type(self).function, case, upstream)
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x: x, lambda x: x.mT.contiguous().mT if x.dim() > 1 else x
        )
        try:
            with hooks:
                given = self.run(type(self).function, case, upstream)
        except RuntimeError as error:
            assert backend == "compiled" and "must be contiguous" in str(error)
        else:
            assert all(relative_error(a, b) < 1e-5 for a, b in zip(given, expected, strict=True))

    def test_the_op_refuses_what_the_checks_refuse(self, compiled_op: Any) -> None:
        """And nothing else: plain tensors go to the op first, and are checked when it refuses them."""
        check = OPERATORS[self.name].check
        if check is None:
            pytest.skip("its public function checks before it calls the op")
        chance, refused = random.Random(0), 0
        every = [x for make in self.cases.values() for x in self.arguments(make())]
        words = [*sorted({x for x in every if isinstance(x, str)}), "bad"]
        for _ in range(1000):
            make, dtype = chance.choice(list(self.cases.values())), chance.choice([torch.float64, torch.bfloat16])
            arguments = [self.changed(x, words, chance) for x in self.arguments(make().to("cpu", dtype))]
            errors: list[Exception | None] = []
            for function in (check, lambda *arguments: compiled_op(*self.prepared(arguments))):
                try:
                    function(*arguments)
                    errors.append(None)
                except Exception as error:
                    errors.append(error)
            described = [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in arguments]
            assert (errors[0] is None) == (errors[1] is None), (described, errors)
            refused += errors[0] is not None
        assert 100 < refused < 900, f"{refused} of 1000 calls refused: the cases are changed too little or too much"

    @staticmethod
    def changed(x: Any, words: list[str], chance: random.Random) -> Any:
        """An argument that mostly stays as it is."""
        if chance.random() < 0.7:
            return x
        if isinstance(x, bool):
            return not x
        if isinstance(x, int):
            return chance.choice([0, 1, 10**6])
        if isinstance(x, tuple):
            return chance.choice([tuple(chance.randint(-3, y) for y in x), (*x, *x), (), None])
        if isinstance(x, str):
            return chance.choice(words)
        if not isinstance(x, Tensor):
            return x
        x, d = x.detach(), chance.randrange(x.dim())
        sizes = x.narrow(d, 0, 0), x.narrow(d, 0, min(x.shape[d], 1)), torch.cat([x, x], d)
        dims = x.transpose(d, chance.randrange(x.dim())), x.sum(d), x.unsqueeze(d)
        return chance.choice([*sizes, *dims, x.float(), x.int(), x.bool()[..., :0]])
