"""Pictures that the docs print from the code's own tables; and Grafana's dashboards.

python -m tests.architecture.pictures          write them into docs and config/grafana
"""

from cluster.metrics import METRICS, Label, Metric
from shard.phases import FACTS, PHASES, TRANSITIONS
from tests.architecture import grafana
from tests.architecture.floors import ROOT, picture

PLACES = {
    "docs/protocol.md": "phases",
    "ARCHITECTURE.md": "floors",
    "docs/metrics.md": "metrics",
}


def phases() -> str:
    """Give the transition table, a line each."""
    lines = [
        f"{PHASES[before]:<13} {FACTS[fact]:<17} {PHASES[after]}"
        for (before, fact), after in TRANSITIONS.items()
    ]
    return _fenced("\n".join(["phase         fact              next phase", *lines]))


def floors() -> str:
    """Give the table of the floors."""
    return _fenced(picture())


def metrics() -> str:
    """Give the table of metrics: what each counts, who serves it, what its labels can be."""
    return "\n".join(_metric(metric) for metric in METRICS)


def _metric(metric: Metric) -> str:
    served = f"{metric.kind}; served by {', '.join(metric.roles)}"
    lines = [f"### `{metric.name}`", "", f"{metric.help} ({served})", ""]
    lines += [f"- `{label.name}`: {_values(label)}" for label in metric.labels]
    if metric.edges:
        edges = ", ".join(f"{edge / metric.scale:g}" for edge in metric.edges)
        lines.append(f"- buckets up to: {edges}")
    return "\n".join([*lines, ""] if len(lines) > 4 else lines)


def _values(label: Label) -> str:
    return ", ".join(f"`{value}`" for value in label.values) or label.known_from


def _fenced(drawn: str) -> str:
    return f"```\n{drawn}\n```"


def printed(text: str, name: str) -> str:
    """Give a page with a picture's place filled."""
    head, mark, rest = text.partition(f"<!-- {name}: ")
    assert mark, f"the page has no place for {name}"
    opening, _, rest = rest.partition("-->")
    _, end, tail = rest.partition("<!-- end -->")
    drawn = {"phases": phases, "floors": floors, "metrics": metrics}[name]()
    return f"{head}{mark}{opening}-->\n{drawn}\n{end}{tail}"


def main() -> None:
    """Write every picture."""
    for place, name in PLACES.items():
        page = ROOT / place
        page.write_text(printed(page.read_text(), name))
    for file, text in grafana.files().items():
        (grafana.PLACE / file).write_text(text)


if __name__ == "__main__":
    main()
