"""What is refused before it becomes a number, in one line that says what to do."""

import pytest
import torch

from stablelightning.errors import DataError
from stablelightning.functional.checked import check_scores, class_rows

P = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
Y = torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("probabilities", "target", "words"),
    [
        (torch.tensor([[2.0, -1.0]]), torch.tensor([0]), "looks like logits"),
        (P * 0.9, Y, r"sum to 1 over the classes, got 0.9 in row 0"),
        (P.log(), Y, "looks like logits"),
        (torch.tensor([[torch.nan, 0.5]]), torch.tensor([0]), "must not be NaN, got 1 of 1"),
        (P, torch.tensor([0, 3]), r"\[0, 2\], got 0 to 3"),
        (P, torch.tensor([-100, 1]), "leave out the rows"),
        (P, torch.tensor([0.5, 1.0]), "numbers in between"),
        (P, torch.tensor([0, 1, 2]), r"without the classes \(2,\), got \(3,\)"),
        (torch.tensor([0.5, 1.5]), torch.tensor([0, 1]), "looks like logits"),
        (torch.tensor([0.5, 0.5]), torch.tensor([0, 2]), r"\[0, 1\], got 0 to 2"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    probabilities: torch.Tensor, target: torch.Tensor, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        class_rows(probabilities, target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_probabilities_that_were_rounded_are_probabilities_still(dtype: torch.dtype) -> None:
    p = torch.randn(200, 10).softmax(1).to(dtype)
    rows, _ = class_rows(p, torch.zeros(200, dtype=torch.long))
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_dense_probabilities_are_laid_out_with_their_own_targets() -> None:
    p = torch.randn(2, 3, 4, 5).softmax(1)
    y = torch.randint(3, (2, 4, 5))
    rows, index = class_rows(p, y)
    picked = p.gather(1, y.unsqueeze(1)).flatten()
    assert torch.equal(rows[torch.arange(40), index], picked)
    last, same = class_rows(p.movedim(1, -1), y, dim=-1)
    assert torch.equal(last, rows)
    assert torch.equal(same, index)


def test_scores() -> None:
    assert check_scores("score", torch.ones(2, 3, dtype=torch.float16)).dtype == torch.float32
    with pytest.raises(DataError, match="at least one row, got none"):
        check_scores("score", torch.ones(0))
    with pytest.raises(DataError, match="one score, got 3 for 2 rows"):
        check_scores("score", torch.ones(3), rows=2)
