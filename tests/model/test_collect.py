"""Stacking samples and joining chunks of any structure."""

import pytest
import torch

from stablelightning.errors import ModelError
from stablelightning.model.collect import concatenate_chunks, detached_copies, stack_outputs


def tree(value: float) -> dict:
    return {
        "t": torch.full((2,), value),
        "deep": [(torch.tensor(value), None), "word"],
        "flag": True,
        "n": value,
    }


def test_stacks_and_chunks_are_the_same_samples() -> None:
    samples = [tree(float(i)) for i in range(5)]
    whole = stack_outputs(samples)
    joined = concatenate_chunks([stack_outputs(samples[:2]), stack_outputs(samples[2:])])
    for found in (whole, joined):
        assert found["t"][:, 0].tolist() == found["n"].tolist() == [0, 1, 2, 3, 4]
        assert found["deep"][0][0].shape == (5,)
        assert found["deep"][0][1] is None
        assert found["deep"][1] == "word"
        assert found["flag"].tolist() == [True] * 5


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ({"x": torch.ones(1)}, {"y": torch.ones(1)}, "same output structure"),
        ([torch.ones(1)], (torch.ones(1),), "same output structure"),
        (torch.ones(2), torch.ones(3), r"same output shape, got \(2,\) and \(3,\)"),
        ([torch.ones(2), "a"], [torch.ones(2), "b"], "str changes"),
    ],
)
def test_samples_that_differ_in_form_are_refused(a, b, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        stack_outputs([a, b])


def test_copies_share_nothing_and_need_no_gradient() -> None:
    source = torch.ones(3, requires_grad=True)
    copies = detached_copies({"a": source, "b": "word"})
    source.data.zero_()
    assert copies["a"].tolist() == [1, 1, 1]
    assert not copies["a"].requires_grad
    assert copies["b"] == "word"
