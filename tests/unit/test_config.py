"""Configuration and catalog: layers, limits, and faults that help."""

import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from config.load import (
    PACKAGED_DEFAULTS,
    Catalog,
    ConfigError,
    load,
    load_catalog,
    load_sagas,
    require_pools,
)
from config.schema import SECTIONS, ClusterConfig, Config
from sagacity.errors import Malformed
from sagacity.money import PRICE_MAX


def written(directory: Path, text: str) -> Path:
    """Write a file of configuration."""
    path = directory / "own.toml"
    path.write_text(text)
    return path


def faults_of(**layers: object) -> str:
    """Load what must not load, and give the faults."""
    with pytest.raises(ConfigError) as caught:
        load(**{"env": {}, **layers})  # type: ignore[arg-type]  # by name
    assert caught.value.exit_code == 2
    return caught.value.text


def test_the_packaged_defaults_are_those_of_the_schema() -> None:
    """Two places state them, one for readers and one for programs: they must not drift."""
    assert msgspec.structs.replace(load(env={}), sources={}) == Config()
    stated = {
        f"{name}.{key}"
        for name, section in tomllib.loads(PACKAGED_DEFAULTS.read_text()).items()
        for key in section
    }
    assert stated == {
        f"{n}.{key}" for n, kind in SECTIONS.items() for key in kind.__struct_fields__
    }


def test_each_layer_wins_over_the_one_below_and_says_so(tmp_path: Path) -> None:
    """SPEC 6: built-in < file < environment < flags; `config show` tells where a value is from."""
    file = written(tmp_path, "[saga]\nattempts = 6\nstuck_after = 7\nbackoff_ms = 8\n")
    env = {"SAGACITY_SAGA__STUCK_AFTER": "70", "SAGACITY_SAGA__BACKOFF_MS": "80", "HOME": "/"}
    config = load(file, env, {"saga.backoff_ms": 800, "saga.deadline_ms": None})
    saga = config.saga
    assert (saga.deadline_ms, saga.attempts, saga.stuck_after, saga.backoff_ms) == (
        30000,
        6,
        70,
        800,
    )
    assert config.sources["saga.deadline_ms"] == "built-in"
    assert config.sources["saga.attempts"] == f"file {file}"
    assert config.sources["saga.stuck_after"] == "environment SAGACITY_SAGA__STUCK_AFTER"
    assert config.sources["saga.backoff_ms"] == "flag"


def test_who_reports_in_time_is_never_taken_for_hung() -> None:
    """A limit below the heartbeat would kill every process again and again."""
    env = {"SAGACITY_SUPERVISOR__WORKER_HUNG_MS": "900"}
    said = "worker_hung_ms = 900 is not above supervisor.heartbeat_ms = 1000"
    assert said in faults_of(env=env)
    assert "shard_silent_ms" in faults_of(env={"SAGACITY_SUPERVISOR__SHARD_SILENT_MS": "1000"})


def test_the_environment_is_read_as_toml_or_else_as_text() -> None:
    """Nobody wants to write quotes twice; but lists and tables must be writable, too."""
    env = {
        "SAGACITY_SUPERVISOR__DATA": "/var/lib/sagacity",
        "SAGACITY_CLUSTER__CATALOG": '"quoted.toml"',
        "SAGACITY_CLUSTER__SAGAS": '["a.b:c", "d:e"]',
        "SAGACITY_SERVICES__POOLS": '{inventory = "x:y"}',
        "SAGACITY_SAGA__DEADLINE_MS": "60_000",
        "SAGACITY_URL": "ipc:///somewhere",
        "SAGACITY_LOG": "debug",
    }
    config = load(env=env)
    assert config.supervisor.data == "/var/lib/sagacity"
    assert config.cluster == ClusterConfig(sagas=("a.b:c", "d:e"), catalog="quoted.toml")
    assert config.services.pools == {"inventory": "x:y"}
    assert config.saga.deadline_ms == 60_000
    assert load(env={"SAGACITY_SUPERVISOR__DATA": "2024"}).supervisor.data == "2024"


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    """Who has three mistakes wants one message, not three attempts."""
    file = written(tmp_path, "[saga]\natempts = 5\n[clutser]\nshards = 3\n[router]\nx = 1\n")
    text = faults_of(
        file=file,
        env={"SAGACITY_SAGA__STUCK_AFTER": "true", "SAGACITY_CLUSTER_SHARDS": "3"},
        flags={"cluster.shards": 0, "saga.shards": 2},
    )
    assert text.startswith("7 faults in the configuration:\n")
    assert f"unknown key saga.atempts, the nearest known is saga.attempts (file {file})" in text
    assert f"unknown section [clutser], the nearest known is cluster (file {file})" in text
    assert "unknown key router.x, the nearest known is" in text
    assert "saga.stuck_after = True: expected `int`, got `bool`" in text
    assert "(environment SAGACITY_SAGA__STUCK_AFTER)" in text
    assert (
        "unknown key cluster_shards, the nearest known is cluster.shards, written SAGACITY_" in text
    )
    assert "cluster.shards = 0: expected `int` >= 1 (flag)" in text
    assert "unknown key saga.shards, the nearest known is cluster.shards (flag)" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cluster.shards", 0),
        ("cluster.shards", 1025),
        ("cluster.shards", 2.0),
        ("cluster.shards", "2"),
        ("cluster.shards", True),
        ("cluster.shards", 2**70),
        ("cluster.sagas", []),
        ("cluster.sagas", ["no place"]),
        ("cluster.catalog", "a\nb"),
        ("services.pools", {}),
        ("services.pools", {"Big": "a:b"}),
        ("services.pools", {"shard": "a:b"}),
        ("services.workers", 65),
        ("services.credit", 16_385),
        ("saga.stuck_after", 0),
        ("saga.backoff_ms", 6_000),
        ("shard.inflight_max", float("nan")),
        ("router.client_inflight_max", -1),
        ("supervisor.metrics_port", 65_536),
        ("supervisor.data", ""),
        ("supervisor.worker_live_ms", 999),
    ],
)
def test_a_value_out_of_its_limits_is_refused_by_name(key: str, value: object) -> None:
    """Every limit has an edge, and one past it is no surprise at run time."""
    assert key.split(".")[1] in faults_of(flags={key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cluster.shards", 1024),
        ("services.workers", 64),
        ("saga.stuck_after", 1),
        ("shard.retry_per_success_permille", 0),
        ("supervisor.metrics_port", 0),
        ("supervisor.drain_ms", 0),
    ],
)
def test_a_value_at_its_limit_is_taken(key: str, value: int) -> None:
    """The edge itself is allowed."""
    section, name = key.split(".")
    assert getattr(getattr(load(env={}, flags={key: value}), section), name) == value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[saga", "is not TOML"),
        (b"[saga]\nattempts = " + b"9" * 5000, "is not TOML"),
        (b"[saga]\nx = " + b"[" * 100_000, "is not TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"saga = 3", "saga is a section, not a value"),
    ],
)
def test_an_unusable_file_is_said_to_be_one(tmp_path: Path, content: bytes, says: str) -> None:
    """Whatever stands in it: a sentence, no traceback."""
    path = tmp_path / "own.toml"
    path.write_bytes(content)
    text = faults_of(file=path)
    assert says in text
    assert str(path) in text


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A wrong path and a directory are the usual ones."""
    assert f"cannot read {tmp_path}: Is a directory" in faults_of(file=tmp_path)
    missing = tmp_path / "missing.toml"
    assert f"cannot read {missing}: No such file" in faults_of(file=missing)


def test_the_packaged_catalog_is_the_demo() -> None:
    """SPEC 1: the example charges 249.99, one SKU has none, u999 has no funds."""
    assert load_catalog() == Catalog(
        prices={"abc123": 10_000, "xyz789": 4_999, "sku_out_of_stock": 1_000},
        stock={"abc123": 10**9, "xyz789": 10**9, "sku_out_of_stock": 0},
        accounts={"u999": 0},
    )
    assert load_catalog("") == load_catalog(None)


def test_a_catalog_of_ones_own_is_read(tmp_path: Path) -> None:
    """Prices at both edges."""
    text = '[sku.a]\nprice = "0.00"\nstock = 0\n[sku."b:c"]\nprice = "10000000.00"\nstock = 7\n'
    catalog = load_catalog(str(written(tmp_path, text)))
    assert catalog == Catalog({"a": 0, "b:c": PRICE_MAX}, {"a": 0, "b:c": 7}, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[sku.a]\nprice = "10000000.01"\nstock = 1', "sku.a: a price is at most 10000000.00"),
        ("[sku.a]\nprice = 1.50\nstock = 1", "sku.a: expected `str`, got `float`"),
        ('[sku.a]\nprice = "1.5"\nstock = 1', "sku.a: an amount is written like 249.99"),
        ('[sku.a]\nprice = "-1.50"\nstock = 1', "sku.a: an amount is written like 249.99"),
        ('[sku.a]\nprice = "1.50"\nstock = -1', "sku.a: expected `int` >= 0"),
        ('[sku.a]\nprice = "1.50"\nstock = true', "sku.a: expected `int`, got `bool`"),
        ('[sku.a]\nprice = "1.50"', "sku.a: object missing required field `stock`"),
        ('[sku.a]\nprice = "1.50"\nstock = 1\nx = 1', "sku.a: object contains unknown field `x`"),
        ('[sku."a b"]\nprice = "1.50"\nstock = 1', "sku.a b: expected `str`"),
        ("[sku]\na = 1", "sku.a: expected `object`, got `int`"),
        ("sku = 1", "sku is a section"),
        ('[account." "]\nbalance = "0.00"', "user_id: must not be blank"),
        ("[goods.a]\nx = 1", "unknown section [goods], the nearest known is"),
        ("[", "is not TOML"),
    ],
)
def test_a_catalog_over_a_limit_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """SPEC 2's limits hold for goods before a shard prices one cart with them."""
    with pytest.raises(ConfigError) as caught:
        load_catalog(written(tmp_path, text))
    assert says in caught.value.text


def test_every_fault_of_a_catalog_is_reported(tmp_path: Path) -> None:
    """As with the configuration."""
    text = '[sku.a]\nprice = "x"\nstock = 1\n[sku.b]\nprice = "1.00"\nstock = "1"\n'
    with pytest.raises(ConfigError) as caught:
        load_catalog(written(tmp_path, text))
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["sku.a", "sku.b"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
    ],
)
def test_whatever_the_module_of_a_users_saga_raises_is_said_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    """One that exits must not end the cluster without a word, and with exit code 0."""
    (tmp_path / "saga_of_a_user.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "saga_of_a_user", raising=False)
    config = Config(cluster=ClusterConfig(sagas=("saga_of_a_user:saga",)))
    with pytest.raises(Malformed, match=f"cluster.sagas: saga_of_a_user:saga: {says}; "):
        load_sagas(config)


def test_pools_and_sagas_that_do_not_fit_are_all_named() -> None:
    """A shard takes no worker of a service that it does not need: it would start again for ever."""
    config = load(env={"SAGACITY_SERVICES__POOLS": '{payment = "a:b", spare = "c:d"}'})
    with pytest.raises(ConfigError) as caught:
        require_pools(config, load_sagas(config))
    needs = "cluster.sagas: checkout needs a service {!r}, of which services.pools says nothing"
    assert caught.value.faults == (
        needs.format("inventory"),
        needs.format("shipping"),
        "services.pools: no saga of cluster.sagas needs a service 'spare'",
    )
    require_pools(load(env={}), load_sagas(load(env={})))
