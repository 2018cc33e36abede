"""Telling somebody outside stops no run, whoever listens there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from flows.notify import notify
from pipeline.config import config_from_toml


@pytest.fixture
def listening() -> Iterator[Callable[[bytes], str]]:
    """A function that lets a listener answer one request, and returns its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(said: bytes) -> str:
            def talk() -> None:
                with server.accept()[0] as caller:
                    caller.recv(65536)
                    caller.sendall(said)

            threading.Thread(target=talk, daemon=True).start()
            return f"http://127.0.0.1:{server.getsockname()[1]}/"

        yield answer


def test_a_document_is_taken(listening):
    assert notify(listening(b"HTTP/1.1 204 No Content\r\n\r\n"), "promoted", "a model")


@pytest.mark.parametrize("said", [b"garbage\r\n\r\n", b"", b"HTTP/1.1 500 No\r\n\r\n", b"HTTP/1.1 200 " + b"x" * 70000])
def test_whoever_answers_something_else_stops_nothing(listening, said):
    assert not notify(listening(said), "promoted", "a model")


def test_nobody_listens():
    assert not notify("http://127.0.0.1:1/", "promoted", "a model")
    assert not notify("", "promoted", "a model")


def test_an_address_is_one_that_can_be_posted_to():
    config = config_from_toml('[service]\nnotify_url = "http://127.0.0.1:1/a b/ö"'.encode())
    assert config.service.notify_url == "http://127.0.0.1:1/a%20b/%C3%B6"
    assert not notify(config.service.notify_url, "promoted", "a model")
