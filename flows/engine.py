"""The engine around a run: the server that the user's settings name, or one of our own for as long as the run takes."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from flows.lifeline import read_line, spawn
from flows.logs import new_log
from storage.errors import NphmError, one_line

START_TIMEOUT_SECONDS = 180.0
RECORDING = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
"""How a server records task runs: many at once, where its default of one by one takes 20 ms of it for each task."""


class EngineError(NphmError):
    """The engine's server does not start or does not answer."""


def quiet_engine() -> None:
    """Keep the engine's log off the terminal; it still goes to the server. To be called before its import."""
    for handler in ("CONSOLE", "DEBUGGER"):
        os.environ.setdefault(f"PREFECT_LOGGING_HANDLERS_{handler}_LEVEL", "CRITICAL")
    os.environ.setdefault("DO_NOT_TRACK", "1")


@contextmanager
def engine() -> Iterator[str]:
    """Run the engine's client against the configured server, or against one of our own.

    Yields:
        The address of the server's API.

    Raises:
        EngineError: it does not start.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    told = PREFECT_API_URL.value()
    if told:
        _check(told)
        yield told
        return
    url = _own_server().url
    with temporary_settings({PREFECT_API_URL: url}):
        yield url


@cache
def _own_server() -> OwnServer:
    """Start a server of our own, once a process: the engine's threads in the background hold on to the first they know.

    Its database lies in the user's cache and may be deleted at any time.
    """
    import prefect

    home = own_home() / f"prefect-{prefect.__version__}"
    with _made_once(home):
        return OwnServer(home, new_log("engine"))


def own_home() -> Path:
    """Where our own servers keep their databases, a folder each version of the engine: the history of local runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nphm"


@contextmanager
def _made_once(home: Path) -> Iterator[None]:
    """Guard the first start, which makes the database: one at a time, and from nothing if the last was cut off."""
    home.parent.mkdir(parents=True, exist_ok=True)
    made = home / "made"
    if made.exists():
        yield
        return
    with (home.parent / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
        yield
        made.touch()


class OwnServer:
    """A server on a free loopback port that ends with this process, and is started again should it be killed before.

    The engine's clients try again for about a minute, so a run outlives its server.

    Args:
        home: the folder of its database.
        log: file for what it prints.

    Raises:
        EngineError: it does not start.
    """

    def __init__(self, home: Path, log: Path) -> None:
        self._home, self._log = home, log
        self._process, self._port = self._start("0")
        self.url = f"http://127.0.0.1:{self._port}/api"
        self._await()
        threading.Thread(target=self._keep, name="server", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process that serves now."""
        return self._process.pid

    def _start(self, port: str) -> tuple[subprocess.Popen[str], str]:
        environment = {
            "PREFECT_HOME": str(self._home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_UI_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "ERROR",
            **RECORDING,
            # Nobody looks at this server's events, and nothing is triggered by them.
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
            # Leave out the services that schedule and watch deployments: one run needs none of them.
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }
        with self._log.open("a") as stderr:
            process = spawn("flows.server", [port], environment, stderr)
        return process, read_line(process).strip()

    def _await(self) -> None:
        until = time.monotonic() + START_TIMEOUT_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            if self._port and _answers(self.url):
                return
            time.sleep(0.05)
        self._process.kill()
        remedy = (
            f"delete {self._home} (it holds the history of local runs alone) and run again, or name a server in"
            " PREFECT_API_URL"
        )
        raise EngineError(one_line("does not start", "the engine's server", f"log: {self._log}", remedy))

    def _keep(self) -> None:
        while True:
            self._process.wait()
            time.sleep(0.5)  # one that can't start must not be started without end
            self._process, _ = self._start(self._port)


def _check(url: str) -> None:
    if not _answers(url):
        remedy = "start it, or unset PREFECT_API_URL to run without one"
        raise EngineError(one_line("does not answer", url, "PREFECT_API_URL names it", remedy))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
