"""Checkouts through Restate's HTTP ingress, each with its id as idempotency key.

Its own small HTTP/1.1 client, a connection kept for each checkout in flight: a comfortable client
library costs more CPU than a checkout may, and the machine is shared with the peer.
"""

import asyncio
import json
from typing import Final

from bench.peers.programs import conductor, ledger

_LINE_END: Final = b"\r\n"


class Connection:
    """One kept connection; one request at a time.

    Args:
        port: of the ingress, on loopback.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, key: str, body: bytes) -> tuple[int, bytes]:
        """Post JSON; give status and body.

        Raises:
            OSError: the connection is gone.
        """
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\n"
            f"content-type: application/json\r\nidempotency-key: {key}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        return await self._answer(self._reader)

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = (await reader.readuntil(2 * _LINE_END)).lower().split(_LINE_END)
        status = int(head[0].split()[1])
        headers = dict(line.split(b": ", 1) for line in head[1:] if b": " in line)
        if b"content-length" in headers:
            return status, await reader.readexactly(int(headers[b"content-length"]))
        body = b""
        while size := int(await reader.readuntil(_LINE_END), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, body


async def main() -> None:
    """Load until told to end."""
    parser = conductor.arguments("restate_load")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    idle: list[Connection] = []

    async def checkout(saga_id: str, declined: bool) -> str:
        connection = idle.pop() if idle else Connection(args.port)
        order = {
            "saga_id": saga_id,
            "user_id": ledger.BROKE if declined else ledger.BUYER,
            "items": ledger.CART,
            "address": ledger.ADDRESS,
        }
        status, body = await connection.post("/Checkout/run", saga_id, json.dumps(order).encode())
        idle.append(connection)
        if status != 200:
            raise OSError(f"HTTP {status}: {body!r}")
        told: str = json.loads(body)["status"]
        return told

    await conductor.conduct(args, checkout)


if __name__ == "__main__":
    asyncio.run(main())
