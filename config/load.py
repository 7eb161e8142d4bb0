"""Reads the configuration and the catalog, all faults at once, and imports what they name. Knows
files and the environment; what may stand in them is said by `schema`.

built-in `default.toml` < file < environment SAGACITY_SECTION__KEY < flags
"""

import importlib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from config.schema import MEANINGS, SECTIONS, Config, contradictions
from sagacity import money
from sagacity.errors import Malformed
from sagacity.messages import Sku, UserId, check_text
from sagacity.saga import Saga

PACKAGED_DEFAULTS: Final = Path(__file__).with_name("default.toml")
PACKAGED_CATALOG: Final = Path(__file__).with_name("catalog.toml")
SKUS_MAX: Final = 100_000  # goods in a catalog, and accounts
STOCK_MAX: Final = 10**12  # units of one SKU

_PREFIX: Final = "SAGACITY_"
_NO_KEYS: Final = frozenset({"SAGACITY_URL", "SAGACITY_LOG"})  # read elsewhere, by other rules

# "saga.attempts" -> its type, limits included.
_TYPES: Final[dict[str, Any]] = {
    f"{section}.{each.name}": each.type
    for section, kind in SECTIONS.items()
    for each in msgspec.structs.fields(kind)
}

_Setting = tuple[str, Any, str]  # key, value, source


class ConfigError(Malformed):
    """The configuration or the catalog cannot be used; `faults` holds a sentence for each reason.

    Args:
        what: that was read, such as "configuration".
        faults: at least one.
    """

    def __init__(self, what: str, faults: list[str]) -> None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n".join([f"{count} in the {what}:", *(f"  {each}" for each in faults)]))
        self.faults = tuple(faults)


class Catalog(Struct, frozen=True):
    """What the demo sells, and to whom.

    Args:
        prices: SKU -> price of one piece, minor units.
        stock: SKU -> units at the beginning.
        accounts: user -> funds at the beginning, minor units; who is not listed has no limit.
    """

    prices: dict[str, int]
    stock: dict[str, int]
    accounts: dict[str, int]


def load(
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """Read the configuration.

    Args:
        file: TOML, any of the sections and keys of `default.toml`.
        env: None for the process's own; a value is read as TOML, or else as text.
        flags: "section.key" -> value; None for a flag that was not given.

    Raises:
        ConfigError: naming every unknown key, wrong type and value out of range, and its source.
    """
    faults: list[str] = []
    chosen: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, value, source in _settings(file, os.environ if env is None else env, flags, faults):
        kind = _TYPES.get(key)
        if kind is None:
            faults.append(_unknown_key(key, source))
            continue
        try:
            chosen[key] = msgspec.convert(value, kind)
            sources[key] = source
        except msgspec.ValidationError as error:
            faults.append(f"{key} = {_brief(value)}: {_plain(error)} ({source})")
        except UnicodeEncodeError:  # the environment may hold any bytes
            faults.append(f"{key} = {_brief(value)}: it is not UTF-8 ({source})")
    if not faults:
        config = _assembled(chosen, sources)
        faults = contradictions(config)
    if faults:
        raise ConfigError("configuration", faults)
    return config


def load_catalog(path: str | Path | None = None) -> Catalog:
    """Read a catalog; nothing or an empty path gives the packaged one.

    Raises:
        ConfigError: naming every fault: unreadable, an unknown key, a limit of SPEC 2.
    """
    file = Path(path) if path else PACKAGED_CATALOG
    faults: list[str] = []
    prices: dict[str, int] = {}
    stock: dict[str, int] = {}
    accounts: dict[str, int] = {}
    for section, name, entry in _entries(_toml(file, faults), faults):
        try:
            if section == "sku":
                msgspec.convert(name, Sku)
                good = msgspec.convert(entry, _Good)
                prices[name] = _price(good.price)
                stock[name] = good.stock
            else:
                msgspec.convert(name, UserId)
                check_text("user_id", name)
                accounts[name] = _balance(msgspec.convert(entry, _Account).balance)
        except (msgspec.ValidationError, ValueError, Malformed) as error:
            faults.append(f"{section}.{name}: {_plain(error)}")
    if faults:
        raise ConfigError(f"catalog {file}", faults)
    return Catalog(prices, stock, accounts)


class _Good(Struct, forbid_unknown_fields=True):
    price: str
    stock: Annotated[int, Meta(ge=0, le=STOCK_MAX)]


class _Account(Struct, forbid_unknown_fields=True):
    balance: str


def load_sagas(config: Config) -> list[Saga]:
    """Import the sagas that the configuration names.

    Raises:
        Malformed: a place holds no Saga, or two have the same name.
    """
    found: list[Saga] = []
    for place in config.cluster.sagas:
        plan = imported(place, f"cluster.sagas: {place}")
        if not isinstance(plan, Saga):
            raise Malformed(f"cluster.sagas: {place} is no Saga")
        taken = ((each.name, each.request_type) for each in found)
        if any(plan.name == one or plan.request_type == other for one, other in taken):
            raise Malformed(f"cluster.sagas: two sagas are called or started like {plan.name}")
        found.append(plan)
    return found


def require_pools(config: Config, sagas: Iterable[Saga]) -> None:
    """Refuse a pool that no saga needs, as no shard takes its workers, and one that is missing.

    Raises:
        ConfigError: naming each.
    """
    needed = {step.service: saga.name for saga in sagas for step in saga.steps}
    faults = [
        f"cluster.sagas: {saga} needs a service {service!r}, of which services.pools says nothing"
        for service, saga in needed.items()
        if service not in config.services.pools
    ]
    faults += [
        f"services.pools: no saga of cluster.sagas needs a service {service!r}"
        for service in config.services.pools
        if service not in needed
    ]
    if faults:
        raise ConfigError("configuration", faults)


def imported(place: str, said: str) -> object:
    """Import what a key of the configuration names.

    Args:
        place: `module:name`.
        said: what a fault begins with: the key, and the place.

    Returns:
        What stands there; None where the module has no such name.

    Raises:
        Malformed: the module cannot be imported, whatever it raises.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise Malformed(
            f"{said}: {type(error).__name__}: {error}; "
            "is it installed, or its folder on PYTHONPATH?"
        ) from error


def _settings(
    file: Path | None,
    env: Mapping[str, str],
    flags: Mapping[str, object] | None,
    faults: list[str],
) -> Iterator[_Setting]:
    """Give every setting of every layer, the weakest first."""
    yield from _of_file(PACKAGED_DEFAULTS, "built-in", faults)
    if file is not None:
        yield from _of_file(file, f"file {file}", faults)
    yield from _of_environment(env)
    for key, value in (flags or {}).items():
        if value is not None:
            yield key, value, "flag"


def _of_file(path: Path, source: str, faults: list[str]) -> Iterator[_Setting]:
    for section, content in _toml(path, faults).items():
        if section not in SECTIONS:
            faults.append(f"unknown section [{section}], {_nearest(section, SECTIONS)} ({source})")
        elif not isinstance(content, dict):
            faults.append(f"{section} is a section, not a value ({source})")
        else:
            for key, value in content.items():
                yield f"{section}.{key}", value, source


def _of_environment(env: Mapping[str, str]) -> Iterator[_Setting]:
    for name in sorted(env):
        if name.startswith(_PREFIX) and name not in _NO_KEYS:
            key = name.removeprefix(_PREFIX).lower().replace("__", ".", 1)
            yield key, _of_text(env[name], _TYPES.get(key)), f"environment {name}"


def _of_text(text: str, kind: Any) -> Any:
    """Read a value as TOML, or else as text; a key that wants text gets 2024 as text, too."""
    try:
        content = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = content.pop("value")
    if content or (not isinstance(value, str) and _wants_text(kind)):
        return text
    return value


def _wants_text(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is str


def _toml(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        faults.append(f"cannot read {path}: {error.strerror}")
    except UnicodeDecodeError:
        faults.append(f"{path} is not UTF-8")
    except (ValueError, RecursionError) as error:  # a number of 5 000 digits, too
        faults.append(f"{path} is not TOML: {error}")
    return {}


def _entries(content: dict[str, Any], faults: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Give (section, name, table) for each good and each account."""
    sections = ("sku", "account")
    for section, members in content.items():
        if section not in sections:
            faults.append(f"unknown section [{section}], {_nearest(section, sections)}")
        elif not isinstance(members, dict):
            faults.append(f"{section} is a section, not a value")
        elif len(members) > SKUS_MAX:
            faults.append(f"[{section}] has at most {SKUS_MAX} entries")
        else:
            for name, entry in members.items():
                yield section, name, entry


def _price(text: str) -> int:
    amount = money.parse(text)
    if amount > money.PRICE_MAX:
        raise ValueError(f"a price is at most {money.show(money.PRICE_MAX)}, not {text}")
    return amount


def _balance(text: str) -> int:
    amount = money.parse(text)
    if amount > money.AMOUNT_MAX:
        raise ValueError(f"a balance is at most {money.show(money.AMOUNT_MAX)}, not {text}")
    return amount


def _assembled(chosen: dict[str, Any], sources: dict[str, str]) -> Config:
    sections: dict[str, Any] = {
        name: kind(**{f.name: chosen[f"{name}.{f.name}"] for f in msgspec.structs.fields(kind)})
        for name, kind in SECTIONS.items()
    }
    return Config(sources=sources, **sections)


def _unknown_key(key: str, source: str) -> str:
    near = _nearest(key, _TYPES)
    if source.startswith("environment") and "." not in key:
        near += ", written SAGACITY_SECTION__KEY"
    return f"unknown key {key}, {near} ({source})"


def _nearest(name: str, known: Any) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - 12 ms that only a mistake needs

    return f"the nearest known is {get_close_matches(name, list(known), 1, 0.0)[0]}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(error: Exception) -> str:
    text = str(error)
    for pattern, meaning in MEANINGS.items():
        text = text.replace(f"`str` matching regex {pattern!r}", meaning)
    return text[:1].lower() + text[1:]
