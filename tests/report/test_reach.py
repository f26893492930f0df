"""A server that is silent, absent or broken does not answer; any other answer counts."""

from pathlib import Path

import pytest

from stablelightning.report.reach import answers, has_netrc_entry
from tests.report.servers import answering, closed_port, silent


@pytest.mark.parametrize("status", [200, 302, 401, 404, 405])
def test_any_answer_of_the_server_counts(status: int) -> None:
    with answering(status) as server:
        assert answers(server.url, timeout=5)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_error_of_the_server_or_of_a_gateway_does_not(status: int) -> None:
    with answering(status) as server:
        assert not answers(server.url, timeout=5)
    assert server.requests


def test_silence_is_not_an_answer() -> None:
    with silent() as server:
        assert not answers(server.url, timeout=0.3)
    assert server.requests


def test_a_closed_port_and_no_address_are_not_answers() -> None:
    assert not answers(f"http://127.0.0.1:{closed_port()}", timeout=5)
    assert not answers("not an address", timeout=5)
    assert not answers("http://no-such-host.invalid", timeout=5)


def test_a_proxy_is_asked_in_place_of_the_server() -> None:
    with answering(200) as proxy:
        assert answers("http://no-such-host.invalid/", timeout=5, proxies={"http": proxy.url})
    assert "no-such-host.invalid" in proxy.requests[0]


def test_netrc_is_read_by_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine api.example.org\n  login user\n  password hunter2\n")
    monkeypatch.setenv("NETRC", str(file))
    assert has_netrc_entry("https://api.example.org:8080/path")
    assert not has_netrc_entry("https://example.org")


@pytest.mark.parametrize("content", ["machine", "\x00\xff nonsense"])
def test_a_broken_netrc_is_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    file = tmp_path / "netrc"
    file.write_text(content)
    monkeypatch.setenv("NETRC", str(file))
    assert not has_netrc_entry("https://api.example.org")
