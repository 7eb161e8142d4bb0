"""Sagacity: sagas that finish. What users import to define sagas, write services and call them."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded at first use: a front-end that only needs one of them answers sooner.
_HOMES = {
    "AsyncClient": "sagacity.client",
    "Client": "sagacity.client",
    "Retry": "sagacity.saga",
    "Saga": "sagacity.saga",
    "Service": "sagacity.service",
    "Step": "sagacity.saga",
    "Worker": "sagacity.worker",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 - the names are given by __getattr__


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'sagacity' has no attribute {name!r}")
    return getattr(import_module(home), name)
