import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.data.splits import (
    check_classes_train,
    few_labels,
    split_by_files,
    split_rows,
)
from stablelightning.errors import DataError

labels = st.lists(st.integers(0, 4), min_size=30, max_size=120).map(torch.tensor)
fractions = st.floats(0.1, 0.4)
seeds = st.integers(0, 2**40)


@given(labels, fractions, fractions, seeds)
def test_splits_are_disjoint_and_cover_every_row(labels, val, test, seed):
    split = split_rows(labels, val_fraction=val, test_fraction=test, seed=seed)
    assert torch.cat(split).sort().values.tolist() == list(range(len(labels)))


@given(labels, fractions, fractions, seeds)
def test_every_class_is_shared_out_in_proportion(labels, val, test, seed):
    split = split_rows(labels, val_fraction=val, test_fraction=test, seed=seed)
    count, train, in_val, in_test = (
        torch.bincount(part, minlength=5)
        for part in (labels, labels[split.train], labels[split.val], labels[split.test])
    )
    assert ((in_test - test * count).abs() < 2).all()
    assert ((in_val - val * count).abs() < 2).all()
    assert (train > 0).eq(count > 0).all()


@given(st.integers(30, 500), fractions, fractions, seeds)
def test_without_classes_the_shares_are_exact(rows, val, test, seed):
    labels = torch.zeros(rows, dtype=torch.long)
    split = split_rows(labels, val_fraction=val, test_fraction=test, seed=seed)
    assert abs(len(split.test) - test * rows) <= 0.5 + 1e-6
    assert abs(len(split.val) - val * rows) <= 1 + 1e-6


@given(seeds)
def test_a_class_of_one_row_trains(seed):
    labels = torch.tensor([0] * 20 + [1] + [2] * 20)
    split = split_rows(labels, val_fraction=0.4, test_fraction=0.4, seed=seed)
    assert 20 in split.train.tolist()
    assert torch.cat(split).sort().values.tolist() == list(range(41))


@given(seeds)
def test_a_split_follows_from_its_seed_alone(seed):
    labels = torch.arange(40) % 3
    torch.manual_seed(seed % 1000)
    before = torch.get_rng_state()
    first = split_rows(labels, val_fraction=0.2, test_fraction=0.2, seed=seed)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    second = split_rows(labels, val_fraction=0.2, test_fraction=0.2, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_seed_gives_another_split():
    labels = torch.zeros(100, dtype=torch.long)
    tests = {
        tuple(split_rows(labels, val_fraction=0.1, test_fraction=0.2, seed=seed).test.tolist())
        for seed in range(5)
    }
    assert len(tests) == 5


def test_every_row_of_a_class_is_as_likely_to_test():
    labels = torch.tensor([0] * 5 + [1] * 15)
    hits = torch.zeros(20)
    for seed in range(400):
        hits[split_rows(labels, val_fraction=0.0, test_fraction=0.2, seed=seed).test] += 1
    # Binomial with mean 80 and standard deviation 8: five of those are out of reach of chance.
    assert (hits - 80).abs().max() < 40
    assert hits[:5].sum() == 400  # exactly one of the five each time


def test_fractions_of_zero_leave_everything_to_training():
    split = split_rows(torch.zeros(7).long(), val_fraction=0.0, test_fraction=0.0, seed=0)
    assert [len(rows) for rows in split] == [7, 0, 0]


def test_too_few_rows_for_a_wanted_split_are_refused():
    with pytest.raises(DataError, match=r"got 3 rows, of which none is left for val"):
        split_rows(torch.zeros(3).long(), val_fraction=0.1, test_fraction=0.3, seed=0)
    with pytest.raises(DataError, match=r"got 1 rows, of which none is left for test"):
        split_rows(torch.zeros(1).long(), val_fraction=0.0, test_fraction=0.7, seed=0)


@pytest.fixture
def files(tmp_path):
    def write(**texts):
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        return {name: str(tmp_path / name) for name in texts}

    return write


def test_index_files_are_followed_in_their_order(files):
    given_files = files(train="7\n1\n2\n", val="5\n", test="3\n0\n")
    split = split_by_files(torch.zeros(8).long(), given_files, val_fraction=0.5, seed=0)
    assert [rows.tolist() for rows in split] == [[7, 1, 2], [5], [3, 0]]


def test_without_a_file_validation_comes_from_the_training_file(files):
    given_files = files(train="9 8 7 6 5 4 3 2", test="0\n1\n")
    split = split_by_files(torch.zeros(10).long(), given_files, val_fraction=0.25, seed=3)
    assert split.test.tolist() == [0, 1]
    assert len(split.val) == 2
    assert sorted(torch.cat([split.train, split.val]).tolist()) == list(range(2, 10))


def test_row_numbers_may_be_written_as_floats(files):
    given_files = files(train="3.000000e+00\n1.0\n", test="0\n")
    split = split_by_files(torch.zeros(4).long(), given_files, val_fraction=0.0, seed=0)
    assert split.train.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("1\n4\n", r"\[0, 3\] for 4 rows, got 4 on line 2 of .*train"),
        ("-1\n", r"\[0, 3\] for 4 rows, got -1 on line 1"),
        ("1\nrow\n", r"got 'row' on line 2"),
        ("1.5\n", r"got '1.5' on line 1"),
        ("inf\n", r"got 'inf' on line 1"),
        ("", r"at least one row, got none"),
        ("1\n0\n", r"got row 0 in .*test and in .*train"),
        ("1\n1\n", r"got row 1 in .*train and in .*train"),
    ],
)
def test_bad_index_files_are_refused_in_one_line(files, train, message):
    given_files = files(train=train, test="0\n")
    with pytest.raises(DataError, match=message) as caught:
        split_by_files(torch.zeros(4).long(), given_files, val_fraction=0.0, seed=0)
    assert "\n" not in str(caught.value)


def test_a_missing_index_file_is_named(files, tmp_path):
    given_files = {**files(test="0"), "train": str(tmp_path / "absent.txt")}
    with pytest.raises(DataError, match=r"readable text file, got .*absent.txt"):
        split_by_files(torch.zeros(4).long(), given_files, val_fraction=0.0, seed=0)


def test_a_class_without_training_rows_is_refused():
    labels = torch.tensor([0, 0, 1, 2])
    check_classes_train(labels, torch.tensor([1, 2, 3]), ["a", "b", "c"])
    with pytest.raises(DataError, match=r"none of the 1 of class 'b'"):
        check_classes_train(labels, torch.tensor([0, 1, 3]), ["a", "b", "c"])


NAMES = tuple("abcde")


@given(labels, seeds)
def test_few_labels_are_equally_many_of_every_class_and_grow_by_rows(labels, seed):
    labels = torch.cat([labels, torch.arange(5).repeat(3)])
    train = split_rows(labels, val_fraction=0.0, test_fraction=0.0, seed=seed).train
    settings = {"seed": seed, "class_names": NAMES}
    one, _ = few_labels(labels, train, per_class=1, **settings)
    three, rest = few_labels(labels, train, per_class=3, **settings)
    assert torch.bincount(labels[three]).tolist() == [3] * 5
    assert set(one.tolist()) < set(three.tolist())
    assert torch.equal(torch.cat([three, rest]).sort().values, train)


def test_no_number_of_labels_uses_them_all():
    train = torch.tensor([1, 3])
    used, rest = few_labels(torch.arange(5), train, per_class=None, seed=0, class_names=NAMES)
    assert torch.equal(used, train)
    assert rest.dtype == torch.long
    assert len(rest) == 0


def test_more_labels_than_a_class_has_are_refused():
    labels = torch.tensor([0, 0, 1, 0])
    with pytest.raises(DataError, match=r"got 2 labels and 1 rows of class 'b'"):
        few_labels(labels, torch.arange(4), per_class=2, seed=0, class_names=("a", "b"))
