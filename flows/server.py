"""The engine's server for one machine and one run: a process on a free loopback port that ends with its parent.

Prints its port as the one line on its standard output, then serves.
"""

from __future__ import annotations

import socket

import uvicorn
from prefect.server.api.server import create_app

from flows.lifeline import hold, take_stdout


def main() -> None:
    """Serve until standard input closes."""
    channel = take_stdout()
    hold(lambda _: None)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    channel.write(f"{listener.getsockname()[1]}\n")
    channel.close()
    uvicorn.Server(uvicorn.Config(create_app(), log_level="error", lifespan="on")).run(sockets=[listener])


if __name__ == "__main__":
    main()
