"""A peer's own environment: its packages at pinned versions, in a folder that nothing else uses.

Packages come from PyPI, npm and Debian through their ordinary clients. An environment is made
once, and again when its pins change; one that was only half made is no environment.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.peers.errors import PeerError, Refused

FOLDER: Final = Path(__file__).with_name(".envs")
PINS: Final = Path(__file__).with_name("pins")
_INSTALL_S: Final = 900.0


class Environment:
    """Where a peer's programs are.

    Args:
        folder: of all peers' environments.
        name: of this one; its Python packages stand in `pins/NAME.txt`.
        npm: packages with versions, `name@1.2.3`.
    """

    def __init__(self, folder: Path, name: str, npm: tuple[str, ...] = ()) -> None:
        self.name, self._npm = name, npm
        self.folder = folder.absolute() / name
        self._pins = PINS / f"{name}.txt"
        self._stamp = self.folder / ".made"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def program(self, name: str) -> Path:
        """Give a program that its Python packages brought."""
        return self.folder / "bin" / name

    @property
    def made(self) -> bool:
        """Whether it is there, as the pins are today."""
        return self._stamp.is_file() and self._stamp.read_text() == self._wanted()

    def make(self) -> None:
        """Make it; nothing to do if it is there.

        Raises:
            PeerError: a package cannot be had, or npm is not there.
        """
        if self.made:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", self.folder])
        _run([self.python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", self._pins])
        if self._npm:
            if shutil.which("npm") is None:
                raise PeerError(f"{self.name} needs npm; on Debian and Ubuntu: apt install npm")
            _run(["npm", "install", "--prefix", self.folder, "--ignore-scripts", *self._npm])
        self._stamp.write_text(self._wanted())

    def check(self) -> None:
        """See that it is there.

        Raises:
            Refused: it is not, or its pins have changed.
        """
        if not self.made:
            raise Refused(
                f"{self.name} is not set up in {self.folder} (or its pins have changed);"
                f" run: python -m bench.peers setup {self.name}"
            )

    def versions(self) -> dict[str, str]:
        """Give the versions of its packages, as pinned."""
        pinned = [line.split("==") for line in self._pins.read_text().split() if "==" in line]
        from_npm = [package.rsplit("@", 1) for package in self._npm]
        return dict((*pinned, *from_npm))

    def _wanted(self) -> str:
        named = self._pins.read_bytes() + " ".join(self._npm).encode() + sys.version.encode()
        return hashlib.sha256(named).hexdigest()


def _run(command: list[str | Path]) -> None:
    shown = " ".join(str(part) for part in command)
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_INSTALL_S,
            check=False,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{shown}: {error}") from error
    if done.returncode != 0:
        raise PeerError(f"{shown} failed:\n{done.stdout[-2000:]}")
