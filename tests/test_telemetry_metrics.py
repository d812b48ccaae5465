from pathlib import Path

import pytest

from rl_cluster.telemetry.metrics import METRICS, metric_named, render_markdown

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"


def test_page_is_the_table():
    assert PAGE.read_text(encoding="utf-8") == render_markdown(), (
        "run: python -m rl_cluster.telemetry.metrics > docs/metrics.md"
    )


def test_every_metric_says_what_it_is_and_how_to_read_it():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.unit
        assert metric.meaning.endswith(".")
        assert metric.how_to_read.endswith(".")


def test_every_metric_is_one_row_of_a_well_formed_table():
    rows = [line for line in render_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(METRICS)
    assert {row.count("|") for row in rows} == {7}


def test_every_group_is_one_section_of_the_page():
    headings = [line[3:] for line in render_markdown().splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings))
    assert set(headings) == {metric.group.capitalize() for metric in METRICS.values()}


def test_bytes_and_shares_say_so_in_their_names():
    for name, metric in METRICS.items():
        if metric.unit == "bytes":
            assert name.endswith("_bytes")
        if metric.unit == "s":
            assert name.endswith("_s")


def test_misspelt_metric_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match="'polcy_version': did you mean policy_version"):
        metric_named("polcy_version")


def test_description_has_the_unit():
    assert metric_named("loss").description.endswith("Unit: loss.")
