"""Whatever is named like a secret never appears in what is stored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.report.redact import REDACTED, is_secret_name, redact_secrets

SECRET_NAMES = [
    "password",
    "db_password",
    "WANDB_API_KEY",
    "apiKey",
    "api-key",
    "hf_token",
    "AWS_SECRET_ACCESS_KEY",
    "client.secret",
    "private_key",
    "credentials",
]
ORDINARY_NAMES = [
    "num_tokens",
    "token_dim",
    "tokenizer",
    "key",
    "monkey",
    "author",
    "key_padding_mask",
    "max_epochs",
    "passes",
    "",
]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ORDINARY_NAMES)
def test_ordinary_settings_are_left_alone(name: str) -> None:
    assert not is_secret_name(name)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(ORDINARY_NAMES), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain, st.sampled_from(SECRET_NAMES), st.integers(0, 3))
def test_a_secret_is_found_at_any_depth(around: object, name: str, depth: int) -> None:
    config: object = {name: "hunter2", "around": around}
    for level in range(depth):
        config = [config, around] if level % 2 else {"inner": config}
    assert "hunter2" not in repr(redact_secrets(config))


@given(plain)
def test_what_holds_no_secret_is_returned_equal_and_as_a_copy(config: object) -> None:
    assert redact_secrets(config) == config


def test_the_original_is_not_changed() -> None:
    config = {"data": {"password": "hunter2"}}
    redact_secrets(config)
    assert config == {"data": {"password": "hunter2"}}


def test_values_of_secret_environment_variables_are_found_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_TOKEN", "tokenvalue123")
    monkeypatch.setenv("MY_FOLDER", "plainfolder")
    redacted = redact_secrets({"root": ["https://host/plainfolder/tokenvalue123/x"]})
    assert redacted == {"root": [f"https://host/plainfolder/{REDACTED}/x"]}


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("--trainer.secret=hunter2", f"--trainer.secret={REDACTED}"),
        ("https://me:hunter2@host/x", f"https://{REDACTED}@host/x"),
        ("https://host/x?api_key=hunter2&page=2", f"https://host/x?api_key={REDACTED}&page=2"),
        ("Authorization: Bearer hunter2", f"Authorization: {REDACTED}"),
        ("lr=0.1 and more", "lr=0.1 and more"),
        ("me@host.org", "me@host.org"),
    ],
)
def test_secrets_inside_of_text(text: str, stored: str) -> None:
    assert redact_secrets(text) == stored


def test_a_number_may_be_a_password_and_a_flag_may_not() -> None:
    assert redact_secrets({"password": 1234, "secret": None, "token": True}) == {
        "password": REDACTED,
        "secret": None,
        "token": True,
    }


def test_a_long_text_is_read_once() -> None:
    # The time limit of the suite is the assertion: a search from every letter would take hours.
    assert redact_secrets("x" * 5_000_000 + " password=hunter2").endswith(f" password={REDACTED}")
