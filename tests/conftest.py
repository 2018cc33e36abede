"""What several test folders share: captures of ICT heads, made by the tool beside the checkout, and an S3 server."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before any library that reads them: test processes run side by side, and threads that wait for each other must not
# spin for long on cores that others need.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"
CAPTURE_TOOL = SHARED / "tools" / "ict_captures.py"
ICT_HEADS = SHARED / "heads" / "ict_heads.npz"


@dataclass(frozen=True)
class Captures:
    """A simulated session and, apart from it, what only a test may read."""

    session: Path
    truth: Path


def _need_ict() -> None:
    """Skip where the heads are not beside the checkout; fail where `NPHM_ICT=required` says that they must be."""
    if CAPTURE_TOOL.exists() and ICT_HEADS.exists():
        return
    missing = f"the ICT heads and their capture tool are not at {SHARED}"
    if os.environ.get("NPHM_ICT") == "required":
        pytest.fail(f"{missing}; put them there, or set NPHM_ICT=optional to skip these tests")
    pytest.skip(missing)


@pytest.fixture(scope="session")
def ict_heads() -> Path:
    """The file with the ICT heads, the input of `import-ict`."""
    _need_ict()
    return ICT_HEADS


@pytest.fixture(scope="session")
def ict_session(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Captures]:
    """A function that makes a session of ICT heads, once for each set of arguments.

    `format` is depth, clouds or mesh; `views` and `size` replace the profile's own; `extra` holds further arguments of
    the capture tool, say ("--glasses", "1").
    """
    made: dict[tuple[object, ...], Captures] = {}

    def make(
        subjects: int = 1,
        expressions: Sequence[str] = ("neutral_open",),
        *,
        format: str = "depth",
        profile: str = "studio",
        views: int | None = None,
        size: str = "320x240",
        seed: int = 0,
        extra: Sequence[str] = (),
    ) -> Captures:
        _need_ict()
        key = (subjects, tuple(expressions), format, profile, views, size, seed, tuple(extra))
        if key not in made:
            out = tmp_path_factory.mktemp("ict")
            command = [sys.executable, str(CAPTURE_TOOL), str(out), "--subjects", str(subjects)]
            command += ["--expressions", ",".join(expressions), "--format", format, "--profile", profile]
            command += ["--size", size, "--seed", str(seed), *extra]
            if views is not None:
                command += ["--views", str(views)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr
            made[key] = Captures(out / "session", out / "truth")
        return made[key]

    return make


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a real S3 server over HTTP on this machine."""
    from moto.server import ThreadedMotoServer  # slow to import: tests over buckets alone pay for it

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket_url(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A place in a bucket of the test's own, as ``open_store`` and the command line take it."""
    import boto3

    for name, value in (
        ("AWS_ENDPOINT_URL", s3_server),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    name = f"heads-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}/lab"
