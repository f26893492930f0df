"""Damaged files are found before training: refused, or left out and counted."""

import pytest
from PIL import Image

from stablelightning.data.readable import readable_files
from stablelightning.errors import DataError, StableLightningWarning

SUFFIXES = (".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".ppm")


@pytest.fixture
def photo(tmp_path):
    def make(name):
        path = tmp_path / name
        Image.effect_noise((64, 64), 80).convert("RGB").save(path)
        return path

    return make


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whole_files_are_all_kept(photo, suffix):
    files = [str(photo(f"{number}{suffix}")) for number in range(3)]
    for unreadable in ("refuse", "skip"):
        assert readable_files(files, unreadable=unreadable) == files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused_and_named(photo, suffix):
    files = [photo(f"{number}{suffix}") for number in range(3)]
    truncate(files[1])
    with pytest.raises(DataError, match=rf"got 1 of 3 that cannot be: {files[1]} \(") as caught:
        readable_files([str(file) for file in files], unreadable="refuse")
    assert "\n" not in str(caught.value)
    assert "--data.unreadable=skip" in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_left_out_and_counted(photo, suffix):
    files = [str(photo(f"{number}{suffix}")) for number in range(3)]
    (bad := photo(f"bad{suffix}")) and truncate(bad)
    with pytest.warns(StableLightningWarning, match=rf"left out: 1 of 4, {bad} \("):
        kept = readable_files([*files[:2], str(bad), files[2]], unreadable="skip")
    assert kept == files


def test_damage_in_the_middle_is_found_where_all_are_decoded(photo):
    path = photo("0.png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(content)
    # Both ends are good: cheap looks do not find it.
    assert readable_files([str(path)], unreadable="refuse") == [str(path)]
    with pytest.warns(StableLightningWarning, match="left out: 1 of 1"):
        assert readable_files([str(path)], unreadable="skip") == []


def test_what_follows_the_end_of_a_jpeg_is_no_damage(photo):
    path = photo("0.jpg")
    path.write_bytes(path.read_bytes() + b"a phone's own data")
    assert readable_files([str(path)], unreadable="refuse") == [str(path)]


def test_three_are_named_and_the_rest_counted(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for file in files:
        file.touch()
    with pytest.raises(DataError, match=r"got 5 of 5 .*0\.png \(.*2\.png \(.*\) and 2 more; "):
        readable_files([str(file) for file in files], unreadable="refuse")
