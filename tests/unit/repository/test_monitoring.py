"""deploy/: alert rules do what they say, and nothing names a metric that does not exist."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from taskmix_server.telemetry.metrics import Metrics

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "taskmix.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
OURS = re.compile(r"\btaskmix_[a-z_]+\b")


@pytest.fixture
def promtool() -> str:
    beside = Path(sys.executable).parent
    found = shutil.which("promtool") or shutil.which("promtool", path=beside)
    assert found, "promtool is missing; `make system` names the Debian package that has it"
    return found


def expressions() -> list[str]:
    """Every query of the dashboard, its variables filled in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [re.sub(r"\$\w+", "5m", query) for query in queries]


def exposed() -> set[str]:
    """Names as a scrape has them, of metrics that have no samples yet too."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    registry = CollectorRegistry()
    Metrics(registry)
    return {
        family.name + suffix for family in registry.collect() for suffix in suffixes[family.type]
    }


def test_alerts_fire_on_what_they_are_for(promtool: str) -> None:
    test = ALERTS.with_name("alerts_test.yml")
    done = subprocess.run(
        [promtool, "test", "rules", str(test)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_explained() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
    tested = ALERTS.with_name("alerts_test.yml").read_text()
    explained = (DEPLOY.parent / "docs" / "operations.md").read_text()
    assert alerts
    for alert in alerts:
        assert f"alertname: {alert}" in tested
        assert f"`{alert}`" in explained


def test_queries_of_the_dashboard_are_promql(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(expressions())]
    assert len(rules) > 20
    path = tmp_path / "rules.yml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [DASHBOARD, ALERTS], ids=lambda path: path.name)
def test_metrics_that_are_named_exist(path: Path) -> None:
    named = set(OURS.findall(path.read_text()))
    assert len(named) >= 8
    assert named <= exposed()


def test_the_dashboard_shows_every_metric() -> None:
    """A metric that nobody looks at is one too many."""
    shown = OURS.findall(DASHBOARD.read_text())
    bases = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown}
    registry = CollectorRegistry()
    Metrics(registry)
    assert {family.name for family in registry.collect()} <= bases


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells
