"""A gRPC server without services, in a process of its own: `handshaking CHAIN KEY` says its port.

A crash in gRPC's native code would take the tests along.
"""

import asyncio
import sys
from pathlib import Path

import grpc

from taskmix_server.rpc.server import credentials
from taskmix_server.runtime.certificates import CertificateFiles


async def main(chain: Path, key: Path) -> None:
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", credentials(CertificateFiles(chain, key)))
    await server.start()
    print(port, flush=True)  # noqa: T201 - what the test reads
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
