"""Prometheus beside a cluster: its configuration is ours, and what cannot be is said in words."""

import socket
from pathlib import Path

import pytest

from cluster import observe, prometheus
from cluster.prometheus import FILES, RULES, NoPrometheus, configured, find, free_port
from cluster.telemetry import PortTaken
from tests.unit.test_alerts import promtool


def test_a_cluster_is_watched_with_the_very_rules(tmp_path: Path) -> None:
    """What is shown of a copy of the rules is shown of no rules that anybody runs."""
    text = configured("http://127.0.0.1:40123/metrics")
    assert "url: http://127.0.0.1:40123/sd\n" in text
    for name in RULES:
        assert f"  - {FILES / name}\n" in text
    ours = (FILES / "prometheus.yml").read_text().splitlines()
    changed = [line for line in text.splitlines() if line not in ours]
    assert len(changed) == 1 + len(RULES)
    (tmp_path / "prometheus.yml").write_text(text)
    code, said = promtool("check", "config", "prometheus.yml", cwd=tmp_path)
    assert code == 0, said


def test_a_configuration_that_was_changed_is_no_silent_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With another port in the file a cluster would be watched that is not there."""
    (tmp_path / "prometheus.yml").write_text("scrape_configs: []\n")
    monkeypatch.setattr(prometheus, "FILES", tmp_path)
    with pytest.raises(NoPrometheus, match=r"does not say http://127\.0\.0\.1:9464/sd once"):
        configured("http://127.0.0.1:40123/metrics")


def test_a_missing_prometheus_is_said_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With how it is installed; nobody should wait for a cluster to learn it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(observe, "start_private", None)
    with pytest.raises(NoPrometheus):
        find()
    assert observe.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("prometheus is not there.")
    assert "apt-get install prometheus" in said


def test_a_taken_port_is_said() -> None:
    """Asked for, it is refused; with none asked for any free one does."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is taken"):
            free_port(port)
        assert free_port(0) not in {0, port}


@pytest.mark.parametrize(
    "words", [["--rate", "0"], ["--rate", "2001"], ["--port", "0"], ["--port", "65536"], ["more"]]
)
def test_a_wrong_word_starts_nothing(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """It is said at once, as by every command."""
    monkeypatch.setattr(observe, "start_private", None)
    with pytest.raises(SystemExit) as ended:
        observe.main(words)
    assert ended.value.code == 2
