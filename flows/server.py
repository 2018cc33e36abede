"""The engine's server for one machine and one run: a process on a free loopback port that ends with its parent.

Prints its port as the one line on its standard output, then serves. Called with a port other than 0, it takes that
one: a server that was killed is started again where its clients look for it.
"""

from __future__ import annotations

import socket
import sys

import uvicorn
from prefect.server.api.server import create_app

from flows.lifeline import end_with_parent, take_stdout


def main() -> None:
    """Serve until standard input closes."""
    channel = take_stdout()
    end_with_parent(lambda _: None)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    channel.write(f"{listener.getsockname()[1]}\n")
    channel.close()
    uvicorn.Server(uvicorn.Config(create_app(), log_level="error", lifespan="on")).run(sockets=[listener])


if __name__ == "__main__":
    main()
