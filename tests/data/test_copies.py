import warnings

import pytest

from stablelightning.data.copies import warn_of_copies
from stablelightning.errors import StableLightningWarning


@pytest.fixture
def write(tmp_path):
    def files(**contents):
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        return [str(tmp_path / name) for name in contents]

    return files


def test_a_file_in_two_splits_is_told(write):
    one, two, three = write(a=b"same", b=b"other", c=b"same")
    with pytest.warns(StableLightningWarning) as told:
        warn_of_copies({"train": [(one, 0), (two, 1)], "val": [], "test": [(three, 0)]})
    (warning,) = told
    assert "in two splits" in str(warning.message)
    assert "1, namely" in str(warning.message)
    assert "a (train) is" in str(warning.message)
    assert "c (test); keep one" in str(warning.message)


def test_a_file_under_two_classes_is_told(write):
    one, two = write(a=b"same", b=b"same")
    with pytest.warns(StableLightningWarning, match="under two classes teach neither: 1, namely"):
        warn_of_copies({"train": [(one, 0), (two, 1)]})


def test_many_are_counted(write):
    names = {f"n{number}": b"same" for number in range(6)}
    first, *others = write(**names)
    with pytest.warns(StableLightningWarning, match=r"5, namely .* and 2 more; keep"):
        warn_of_copies({"train": [(first, 0)], "test": [(other, 0) for other in others]})


def test_copies_within_one_split_and_class_and_files_alike_at_the_end_are_not(write):
    tail = bytes(5000)
    one, two, three, four = write(a=b"x" + tail, b=b"y" + tail, c=b"same", d=b"same")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_copies({"train": [(one, 0), (three, 1), (four, 1)], "test": [(two, 0)]})
