"""The machine that a worker or a client runs on: sockets, time, chance.

Everything of it that they use comes from one object, so that a simulation can give them another:
a thousand processes on one thread, in a time of its own. What a machine does is real in
`SystemMachine`; nothing here decides.
"""

import secrets
import time
from typing import Protocol

from sagacity.sockets import Context, context


class Machine(Protocol):
    """What a process takes from outside itself."""

    def context(self) -> Context:
        """Give what makes its sockets and waits for them."""

    def monotonic_ns(self) -> int:
        """Give nanoseconds that never go back; their zero means nothing."""

    def random_bits(self, bits: int) -> int:
        """Give a number that nobody can guess, 0 .. 2**bits - 1."""


class SystemMachine:
    """This one."""

    def context(self) -> Context:
        """Make a ZeroMQ context."""
        return context()

    def monotonic_ns(self) -> int:
        """Give nanoseconds that never go back."""
        return time.monotonic_ns()

    def random_bits(self, bits: int) -> int:
        """Give what the operating system's source of chance gives."""
        return secrets.randbits(bits)
