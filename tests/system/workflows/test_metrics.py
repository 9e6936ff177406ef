"""Prometheus' own tool takes what parbake prints, and its alerts are raised by that: each when it should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parbake.cli.text.measured import metrics_text
from parbake.cli.text.prometheus import gauge
from parbake.core import run
from parbake.records import Record
from parbake.workflows.metrics import BakeInUse, Measured, ServedImage
from standins.plans import record

ALERTS = Path(__file__).parents[3] / "deploy/chart/files/bake-alerts.yaml"
HOSTILE = 'a "quoted"\\back\nslash'


def baked(day: int, *, passed: bool) -> Record:
    """A record of a day of January 1970, where the clock of promtool's tests begins."""
    return record(passed=passed).model_copy(update={"finished_at": f"1970-01-{day:02}T00:00:00Z"})


def measured(of: Record, *, served: bool) -> Measured:
    image = of.plan.images[0]
    return Measured(
        ((Path(of.file_name), of),),
        (BakeInUse(of, "target"),),
        (ServedImage(of, image, served=served, current=False),),
        (("target", HOSTILE),),
    )


def test_promtool_finds_nothing_to_say_of_metrics_and_rules() -> None:
    text = metrics_text(measured(baked(1, passed=True), served=True)) + "\n"
    assert HOSTILE not in text
    assert run.run(["promtool", "check", "metrics"], stdin=text.encode()).text == ""
    said = run.run(["promtool", "check", "rules", "--lint-fatal", str(ALERTS)]).text
    assert "SUCCESS: 4 rules found" in said


@pytest.mark.parametrize(
    ("day", "passed", "served", "hits", "alerts"),
    [
        (1, True, True, 1.0, ["ParbakeBakeIsOld"]),
        (30, True, False, 1.0, ["ParbakeImageIsGone"]),
        (30, False, True, 1.0, ["ParbakeBakeFails"]),
        (30, True, True, 0.8, ["ParbakeBakeIsNotUsed"]),
        (30, True, True, 0.9, []),
    ],
)
def test_each_alert_is_raised_by_its_cause_alone(
    tmp_path: Path, day: int, passed: bool, served: bool, hits: float, alerts: list[str]
) -> None:
    text = metrics_text(measured(baked(day, passed=passed), served=served))
    text += "\n" + gauge("parbake_pod_hit_ratio", "As `observe` prints it.", [({"artefact": "a"}, hits)])
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    fires = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "32d",
        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in alerts],
    }
    series = [{"series": name, "values": f"{value}x1000"} for name, _, value in lines]
    group = {"interval": "1h", "input_series": series, "promql_expr_test": [fires]}
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": "1h", "tests": [group]}
    (tmp_path / "test.yaml").write_text(json.dumps(document))
    run.run(["promtool", "test", "rules", str(tmp_path / "test.yaml")])
