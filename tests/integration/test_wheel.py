"""The wheel holds all that runs, and runs beside a user's own folders of the same names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LINES = (
    {"src": "c0", "dest": "n1", "body": {"type": "init", "msg_id": 1, "node_id": "n1"}},
    {
        "src": "c1",
        "dest": "n1",
        "body": {
            "type": "checkout",
            "msg_id": 2,
            "saga_id": "wheel",
            "user_id": "u42",
            "items": [{"sku": "abc123", "quantity": 1}],
            "shipping_address": "123 Main St",
        },
    },
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Build the wheel and unpack it into a folder of its own, as pip would."""
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = wheels.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    install += ["--disable-pip-version-check", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=60)
    return site


def test_the_wheel_runs_a_sample_beside_a_users_own_services_and_config(
    installed: Path, tmp_path: Path
) -> None:
    """Users have folders called services and config; theirs must not be taken for ours."""
    shop = tmp_path / "shop"
    for name in ("services", "config", "shard", "cluster"):
        (shop / name).mkdir(parents=True)
        (shop / name / "__init__.py").write_text("raise SystemExit('not the one you want')\n")
    node = [sys.executable, "-P", "-m", "cluster", "maelstrom", "--data", str(tmp_path / "data")]
    told = "".join(json.dumps(line) + "\n" for line in LINES)
    done = subprocess.run(
        node,
        cwd=shop,
        input=told.encode(),
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(installed), "XDG_RUNTIME_DIR": str(tmp_path)},
        check=True,
    )
    answers = [json.loads(line)["body"] for line in done.stdout.splitlines()]
    assert [body["type"] for body in answers] == ["init_ok", "checkout_complete"]


def test_the_wheel_holds_code_and_tables_and_nothing_beside(installed: Path) -> None:
    """What is not shipped cannot run; what need not be shipped shall not."""
    names = {path.name for path in installed.iterdir()}
    shipped = {"bench", "cluster", "config", "router.py", "sagacity", "services", "shard", "bin"}
    assert {name for name in names if not name.endswith(".dist-info")} <= shipped | {"__pycache__"}
    assert (installed / "config" / "default.toml").exists()
    assert (installed / "config" / "catalog.toml").exists()
    assert (installed / "sagacity" / "py.typed").exists()
