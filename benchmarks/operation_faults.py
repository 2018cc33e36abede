"""Runs under fire: what is killed, a full disk, a store that is cut off; each has to end in the undisturbed digests."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.operation_runs import ROOT, Rows, digests, finish, make_workspace, start, tiny_session
from benchmarks.operation_steps import STEPS
from flows.engine import OwnServer
from pipeline.ingest import ingest_session
from pipeline.opening import open_workspace

TARGETS = ("flow", "worker", "server", "dask", "training")
SLOW = {"OPERATION_STEP_SECONDS": "0.3"}
CUT_OFF_SECONDS = 60.0
MOTO = """
import sys
from moto.server import ThreadedMotoServer
ThreadedMotoServer("127.0.0.1", int(sys.argv[1]), verbose=False).start()
input()
"""


def kills(rows: Rows, quick: bool) -> dict[str, float]:
    """Each target some times, each at a random moment of the steps; for training, once that has begun."""
    work = rows.work
    session = tiny_session(work / "kills-session", 2, 3)
    wanted: dict[str, bytes] = {}
    url = ""

    def shaken(target: str, number: int) -> dict[str, Any]:
        nonlocal url
        if not wanted:
            url = OwnServer(work / "engine", work / "engine.log").url
            wanted.update(_undisturbed(work / "kills-calm", session, PREFECT_API_URL=url))
        own = {} if target == "server" else {"PREFECT_API_URL": url}
        return _shake(work / "kills-shaken", session, target, random.Random(f"{target} {number}"), wanted, own | SLOW)

    made = [
        rows.kept(f"kill-{target}-{number}", lambda target=target, number=number: shaken(target, number))
        for target in TARGETS
        for number in range(1 if quick else 10)
    ]
    for row in made:
        print("kills: {target}, {after:.1f} s in, ended by {ended}: {what}".format(**row))
    return {
        "kills": len(made),
        "kills_equal_of_50": float(sum(row["equal"] for row in made)),
        "kills_that_needed_a_rerun": sum(row["ended"] == "one rerun" for row in made),
    }


def _undisturbed(folder: Path | str, session: Path, **env: str) -> dict[str, bytes]:
    calm = make_workspace(folder)
    ingest_session(open_workspace(calm, STEPS), session)
    finish(start(calm, **env))
    return digests(calm)


def _shake(
    folder: Path, session: Path, target: str, moment: random.Random, wanted: dict[str, bytes], env: dict[str, str]
) -> dict[str, Any]:
    """Kill once, at a random moment; a moment at which nothing of the kind runs any more is drawn again."""
    while True:
        url = make_workspace(folder)
        ingest_session(open_workspace(url, STEPS), session)
        running = start(url, dask="local" if target == "dask" else "", **env)
        assert running.stderr is not None
        mark = "train:" if target == "training" else "clean:"
        told = any(line.startswith(mark) for line in running.stderr)
        after = moment.uniform(0, 3)
        time.sleep(after)
        victim = _victim(running, target, moment) if told else None
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
        running.communicate()
        if victim is not None:
            break
    if running.returncode:
        finish(start(url, **env))
    equal = digests(url) == wanted
    ended = "one rerun" if running.returncode else "itself"
    return {"target": target, "after": after, "ended": ended, "equal": equal, "what": "equal" if equal else "DIFFERS"}


def _victim(running: subprocess.Popen[str], target: str, moment: random.Random) -> int | None:
    if running.poll() is not None:
        return None
    if target == "flow":
        return running.pid
    marks = {"worker": "flows.worker", "training": "flows.worker", "server": "flows.server", "dask": "spawn_main"}
    own = [pid for pid, line in _children(running.pid) if marks[target] in line]
    return moment.choice(own) if own else None


def _children(pid: int) -> list[tuple[int, str]]:
    """A process's children and theirs, with their command lines."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in own:
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            found += [(child, line), *_children(child)]
    return found


def disk_full(rows: Rows, quick: bool) -> dict[str, float]:
    """The workspace's disk, a small one in memory, fills up while steps write; then there is room again."""
    work = rows.work
    session = tiny_session(work / "kills-session", 2, 3)
    times = 1 if quick else 3

    def made() -> dict[str, Any]:
        # A mount of its own, in a namespace that ends with the process.
        inner = [sys.executable, __file__, "disk-full", str(work), str(session), str(times)]
        command = ["unshare", "--mount", "--map-root-user", *inner]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row

    return rows.kept("disk-full", made)


def _disk_full_inside(work: Path, session: Path, times: int) -> None:
    engine = {"PREFECT_API_URL": OwnServer(work / "engine", work / "engine.log").url}
    wanted = _undisturbed(work / "full-calm", session, **engine)
    disk = work / "full-disk"
    disk.mkdir(exist_ok=True)
    equal = said = 0
    for number in range(times):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=True)
        url = make_workspace(disk / "ws")
        ingest_session(open_workspace(url, STEPS), session)
        room = os.statvfs(disk)
        left = random.Random(number).randrange(8, 60) * room.f_frsize
        (disk / "filler").write_bytes(b"\0" * (room.f_bavail * room.f_frsize - left))
        running = start(url, **engine)
        _, told = running.communicate()
        said += running.returncode != 0 and "No space left on device" in told.splitlines()[-1]
        (disk / "filler").unlink()
        finish(start(url, **engine))
        equal += digests(url) == wanted
        subprocess.run(["umount", disk], check=True)
    print(json.dumps({"disk_full_told_share": said / times, "disk_full_equal_share": equal / times}))


def cut_off(rows: Rows, quick: bool) -> dict[str, float]:
    """The bucket of a run refuses every connection for a minute, from a random moment on."""
    work = rows.work
    session = tiny_session(work / "kills-session", 2, 3)
    times = 1 if quick else 3
    seconds = CUT_OFF_SECONDS

    def made(number: int) -> dict[str, Any]:
        import boto3

        engine = {"PREFECT_API_URL": OwnServer(work / "engine", work / "engine.log").url}
        wanted = _undisturbed(work / "cut-calm", session, **engine)
        with _bucket_server() as (direct, wire):
            bucket = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "somebody",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
            }
            os.environ.update(bucket)
            boto3.client("s3", endpoint_url=direct, region_name="us-east-1").create_bucket(Bucket="heads")
            url = make_workspace("s3://heads/ws")
            ingest_session(open_workspace(url, STEPS), session)
            running = start(url, **engine, **SLOW)
            assert running.stderr is not None
            assert any(line.startswith("clean:") for line in running.stderr)
            time.sleep(random.Random(number).uniform(0, 3))
            wire.cut()
            time.sleep(seconds)
            wire.mend()
            running.communicate()
            if running.returncode:
                finish(start(url, **engine))
            equal = digests(url) == wanted
        return {"equal": equal, "ended": "one rerun" if running.returncode else "itself"}

    done = [rows.kept(f"cut-off-{number}", lambda number=number: made(number)) for number in range(times)]
    for row in done:
        print("cut off: ended by {ended}, equal: {equal}".format(**row))
    return {
        "cut_off_equal_share": sum(row["equal"] for row in done) / times,
        "cut_off_that_needed_a_rerun": sum(row["ended"] == "one rerun" for row in done),
    }


class Wire:
    """A connection to a server that can be cut: while it is, no new one is taken and those that stand end."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def cut(self) -> None:
        """Cut it."""
        with self._lock:
            sockets, self._open = {self._listener, *self._open}, set()
        for each in sockets:
            # Whoever waits in it wakes up at once; closing alone would leave him waiting.
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def mend(self) -> None:
        """Let connections through again, at the same port."""
        self._listener = self._listen(self.port)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                return
            with self._lock:
                self._open |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        with self._lock:
            self._open.discard(one)


@contextmanager
def _bucket_server() -> Iterator[tuple[str, Wire]]:
    """An S3 server in a process of its own, its address, and a wire to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", MOTO, str(port)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.2)
        wire = Wire(port)
        yield f"http://127.0.0.1:{port}", wire
        wire.cut()
        server.kill()


if __name__ == "__main__":
    _disk_full_inside(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
