"""What the bench makes of its samples: ratios, bounds, tables, the plot (tests/bench)."""

from __future__ import annotations

import xml.etree.ElementTree as xml

import pytest

from tests.bench import plot, report
from tests.bench.measure import RunFailed, Sample
from tests.bench.rows import Figure, Row, Samples, Subject, interleave, results, verdict
from tests.bench.stats import ratio_interval


def samples(**walls: list[float]) -> Samples:
    """Subjects with these wall times, and twice as much processor time."""
    taken = Samples()
    taken.taken = {name: [Sample(wall, 2 * wall) for wall in values] for name, values in walls.items()}
    return taken


def test_a_ratio_is_of_medians_and_lies_in_its_interval() -> None:
    """One slow run moves neither."""
    ratio, low, high = ratio_interval([2, 2, 2, 90, 2], [1, 1, 1, 1, 1])
    assert (ratio, low) == (2, 2)
    assert high in (2, 90)


@pytest.mark.parametrize(
    ("value", "must", "aim", "at_least", "said"),
    [
        (1.0, 2.0, 1.5, False, "aim"),
        (1.8, 2.0, 1.5, False, "met"),
        (2.1, 2.0, 1.5, False, "missed"),
        (2.1, None, None, False, ""),
        (0.9, 0.5, 0.8, True, "aim"),
        (0.6, 0.5, 0.8, True, "met"),
        (0.4, 0.5, 0.8, True, "missed"),
    ],
)
def test_bounds(value: float, must: float | None, aim: float | None, at_least: bool, said: str) -> None:
    """From above for times, from below for speeds."""
    assert verdict(value, must, aim, at_least=at_least) == said


def test_a_speed_is_the_other_times_over_ours() -> None:
    """Half as fast is 0.5, whichever subject is named first."""
    rows = [Row("time", "a", "b"), Row("speed", "a", "b", speed=True), Row("not measured", "a", "c")]
    found = results(rows, samples(a=[2.0, 2.0], b=[1.0, 1.0]))
    assert [(result.row.name, result.ratio, result.cpu) for result in found] == [("time", 2.0, 2.0), ("speed", 0.5, None)]


def test_a_subject_that_fails_is_left_out_and_the_others_go_on() -> None:
    """With its reason; no sample of it is compared with anything."""
    calls: list[str] = []

    def fails() -> float:
        calls.append("bad")
        if len(calls) == 2:
            raise RunFailed("no reason")
        return 1.0

    taken = Samples()
    subjects = [Subject("good", lambda: 1.0, alone=False), Subject("bad", fails, alone=False)]
    interleave(subjects, 3, taken, lambda _words: None)
    assert (len(taken.taken["good"]), "bad" in taken.taken, taken.failed) == (3, False, {"bad": "no reason"})
    assert len(calls) == 2


def outcome() -> report.Outcome:
    """A small run."""
    taken = samples(a=[0.2, 0.3, 0.2], b=[0.1, 0.1, 0.1])
    found = results([Row("a over b", "a", "b", must=3, aim=1)], taken)
    steps = {"cold": ["30 ms: cgroup 2, boot 28", "40 ms: cgroup 4, boot 36"]}
    return report.Outcome("cmd", {"load": "0"}, taken, found, [Figure("memory", 12.34, "MiB", 20.0)], steps, {"runsc": "get it"})


def test_the_tables_have_every_row() -> None:
    """Ratio with its bounds, figure, subject, steps, what is missing."""
    text = report.as_markdown(outcome())
    assert "| a over b | 200 | 100 | 2.00 | 2.00 - 3.00 | 2.00 | <= 3 | <= 1 | met |" in text
    assert "| memory | 12.3 MiB | <= 20 |  | met |" in text
    assert "| a | 200 | 0.00 | 200 | 300 | 400 | 3 |" in text
    assert "| cold | cgroup 3, boot 32 |" in text
    assert "- runsc: get it" in text


def test_json_has_every_sample() -> None:
    """Nothing is rounded away."""
    told = report.as_json(outcome())
    assert told["samples"] == {
        "a": [{"wall": 0.2, "cpu": 0.4}, {"wall": 0.3, "cpu": 0.6}, {"wall": 0.2, "cpu": 0.4}],
        "b": [{"wall": 0.1, "cpu": 0.2}] * 3,
    }


def test_the_plot_is_svg_with_a_dot_for_each_sample() -> None:
    """And words are escaped."""
    drawn = xml.fromstring(plot.svg({"a < b": [0.001, 0.01], "c": [1.0], "none": []}, "title & more"))
    names = [element.tag.rpartition("}")[2] for element in drawn]
    assert names.count("circle") == 3
    assert {"a < b", "c", "title & more"} <= {element.text for element in drawn}
