"""What is told of a sparse model has its counts, and a picture that shows them."""

import pytest

from stablelightning.errors import DataError
from stablelightning.model.prune import LayerSparsity
from stablelightning.report.sparse import chosen_score, sparsity_figure, sparsity_section

LAYERS = [LayerSparsity("net.0", (8, 4), 32, 24), LayerSparsity("net.2", (3, 8), 24, 6)]
CHANGES = [{"step": 4, "sparsity": 0.25}, {"step": 9, "sparsity": 30 / 56}]
VALIDATIONS = [
    {"step": 3, "sparsity": 0.0, "scores": {"val/loss": 0.2, "val/accuracy": 0.9}},
    {"step": 12, "sparsity": 30 / 56, "scores": {"val/loss": 0.1, "val/accuracy": 0.8}},
]


def bars(axes) -> list[float]:
    widths = [patch.get_width() for patch in axes.patches]
    assert widths[: len(LAYERS)] == [100, 100]
    return widths[len(LAYERS) :]


def test_counts_scores_and_bytes_are_told_in_words_and_numbers():
    section = sparsity_section(
        LAYERS,
        changes=CHANGES,
        validations=VALIDATIONS,
        before=VALIDATIONS[0]["scores"],
        sizes={"dense": 4096, "sparse_zipped": 3 * 2**20},
    )
    assert section.lead == (
        "30 of 56 prunable weights are exactly zero (53.57%); val/accuracy was 0.9 when pruning "
        "began and 0.8 at the end"
    )
    assert section.rows[-1] == ["all", "", 56, 30, "53.57%"]
    assert section.numbers["sparse/sparsity"] == 30 / 56
    assert section.numbers["sparse/bytes_dense"] == 4096
    assert section.numbers["sparse/val/accuracy_before"] == 0.9
    assert section.numbers["sparse/val/loss_after"] == 0.1
    assert "4 KiB dense, 3.0 MiB sparse and zipped" in section.notes[0]


def test_without_scores_and_sizes_the_counts_stand_alone():
    section = sparsity_section(LAYERS)
    assert section.lead == "30 of 56 prunable weights are exactly zero (53.57%)"
    assert section.numbers == {"sparse/sparsity": 30 / 56}
    assert section.notes == []
    with pytest.raises(DataError, match="must have layers"):
        sparsity_section([])


def test_the_picture_shows_scores_the_schedule_and_what_layers_kept():
    scores, shares, layers = sparsity_figure(LAYERS, changes=CHANGES, validations=VALIDATIONS).axes
    assert scores.get_ylabel() == "val/accuracy"
    assert scores.lines[0].get_ydata().tolist() == [0.9, 0.8]
    assert shares.lines[0].get_xdata().tolist() == [0, 4, 9, 12]
    assert shares.lines[0].get_ydata()[-1] == pytest.approx(100 * 30 / 56)
    assert bars(layers) == [25, 75]
    assert [text.get_text() for text in layers.texts] == ["25.0% of 32", "75.0% of 24"]


def test_the_picture_does_with_what_is_known():
    (alone,) = sparsity_figure(LAYERS).axes
    assert bars(alone) == [25, 75]
    empty = [{"step": 5, "sparsity": 0.0, "scores": {}}]
    assert len(sparsity_figure(LAYERS, changes=CHANGES, validations=empty).axes) == 2


def test_of_many_layers_some_are_named():
    many = [LayerSparsity(f"stage.{n}.a.rather.long.name.of.it", (2,), 2, 1) for n in range(90)]
    (axes,) = sparsity_figure(many).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) <= 28
    assert all(len(name) <= 26 for name in names)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({"val_loss": 1.0, "val_acc": 0.5}, "val_acc"),
        ({"val/loss": 1.0, "val/rmse": 0.5}, "val/rmse"),
        ({"val/bleu": 1.0}, "val/bleu"),
        ({}, None),
    ],
)
def test_an_accuracy_stands_for_a_validation(scores, chosen):
    assert chosen_score(scores) == chosen
