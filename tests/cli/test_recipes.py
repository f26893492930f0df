"""Finding shipped recipes and the reader's own."""

import pytest

from stablelightning.cli.recipes import ADD, START, describe, did_you_mean, find, listing, shipped
from stablelightning.errors import RecipeError


def test_every_shipped_recipe_is_listed_with_what_it_is_for():
    printed = listing()
    for kind in (START, ADD):
        for name, path in shipped(kind).items():
            assert describe(path), f"{name} begins with no comment"
            assert f"{describe(path)}" in printed


def test_the_first_issue_ships_these():
    assert {"digits", "digits_cnn", "diabetes"} <= set(shipped(START))
    assert {"multi_gpu", "online_wandb"} <= set(shipped(ADD))


def test_own_file_is_found_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: {}")
    assert find("mine.yaml", START) == tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("digit", START, "got 'digit'; did you mean 'digits'?"),
        ("multigpu", ADD, "got 'multigpu'; did you mean 'multi_gpu'?"),
        ("zzz", START, "got 'zzz'."),
        ("nowhere.yaml", START, "must be a file that exists"),
    ],
)
def test_unknown_names_are_refused(name, kind, said):
    with pytest.raises(RecipeError) as caught:
        find(name, kind)
    assert said in str(caught.value)


def test_nothing_near_suggests_nothing():
    assert did_you_mean("zzz", ["digits"]) == ""
