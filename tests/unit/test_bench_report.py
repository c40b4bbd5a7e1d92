"""What the bench makes of its samples: the report and the plot (tests/bench)."""

from __future__ import annotations

import xml.etree.ElementTree as xml

from tests.bench import plot, report
from tests.bench.measure import Sample
from tests.bench.quoted import KATA
from tests.bench.rows import Figure, Line, Row, Value, lines, of_figures
from tests.bench.stacks import on
from tests.bench.subjects import Samples

OLD, NEW = "Debian 12", "QEMU 10"


def outcome() -> report.Outcome:
    """A small run on two stacks."""
    taken = Samples()
    walls = {on("a", OLD): [0.2, 0.3, 0.2], on("a", NEW): [0.1, 0.1, 0.1], "b": [0.1, 0.1, 0.1], "c": [0.4]}
    taken.taken = {name: [Sample(wall, 2 * wall) for wall in values] for name, values in walls.items()}
    rows = lines([Row("a over b", "a", "b", must=1.5, aim=0.5), Row("c over b", "c", "b")], taken, [OLD, NEW])
    figures = of_figures([Figure("memory", 12.34, "MiB", 20.0, None, stack) for stack in (OLD, NEW)])
    hidden = of_figures([Figure("memory of QEMU", 3, "MiB", stack=OLD, detail=True)])
    unknown = Line("private", {}, note="not measurable here: needs it")
    sections = {"Starts": rows, "Size": [*figures, *hidden, unknown], "None": []}
    steps = {on("cold", OLD): ["30 ms: cgroup 2, boot 28", "40 ms: cgroup 4, boot 36"]}
    return report.Outcome("cmd", {"load": "0"}, [OLD, NEW], taken, sections, steps, {"runsc": "get it"})


def test_the_table_has_a_column_for_each_stack_and_judges_the_newer() -> None:
    """The other's verdict is there where it differs."""
    text = report.as_markdown(outcome())
    assert "| row | Debian 12 | QEMU 10 | CPU | must | aim |  |" in text
    ours = "| a over b | 200 / 100 = 2.00 (2.00 - 3.00) | 100 / 100 = 1.00 (1.00 - 1.00) | 2.00, 1.00 | <= 1.5 | <= 0.5 |"
    assert f"{ours} met (Debian 12: missed) |" in text
    assert "Rows are judged on QEMU 10" in text


def test_what_has_to_do_with_no_stack_stands_once() -> None:
    """In the first column."""
    assert "| c over b | 400 / 100 = 4.00 (4.00 - 4.00) | = | 4.00 |  |  |  |" in report.as_markdown(outcome())


def test_figures_and_notes_are_lines_of_the_same_table() -> None:
    """Details are below it, and a section without lines is left out."""
    head, _, details = report.as_markdown(outcome()).partition("## Details")
    assert "| **Size** |  |  |  |  |  |  |\n| memory | 12.3 MiB | 12.3 MiB |  | <= 20 |  | met |" in head
    assert "| private |  |  |  |  |  | not measurable here: needs it |" in head
    assert "**None**" not in head
    assert "memory of QEMU" not in head
    assert "| memory of QEMU | 3.00 MiB |  |  |" in details
    assert "| a [Debian 12] | 200 | 0 | 200 | 300 | 400 | 3 |" in details
    assert "| cold [Debian 12] | cgroup 3, boot 32 |" in details


def test_what_is_quoted_or_missing_is_said() -> None:
    """Real Kata's figures are marked as such."""
    text = report.as_markdown(outcome())
    assert KATA in text and "not measured" in KATA
    assert "- runsc: get it" in text


def test_a_row_that_the_newer_stack_lacks_says_where_it_is_judged() -> None:
    """It failed there."""
    line = Line("a", {OLD: Value(1.0)}, must=2)
    assert report.verdicts(line, [OLD, NEW]) == "met (on Debian 12)"
    assert report.verdicts(line, [OLD]) == "met"
    assert report.verdicts(Line("a", {OLD: Value(1.0), NEW: Value(2.0)}), [OLD, NEW]) == ""


def test_small_ratios_keep_two_digits_that_count() -> None:
    """A speed of a hundredth is not none."""
    told = [report.digits(value) for value in (1234.5, 12.34, 1.234, 0.1234, 0.001234)]
    assert told == ["1234", "12.3", "1.23", "0.12", "0.0012"]


def test_a_single_stack_is_judged_and_named() -> None:
    """Where the newer one is not here."""
    alone = outcome()._replace(stacks=[OLD])
    assert "Rows are judged on Debian 12, since QEMU 10 is not here." in report.as_markdown(alone)


def test_json_has_every_sample_and_the_verdict_of_each_stack() -> None:
    """Nothing is rounded away."""
    told = report.as_json(outcome())
    assert isinstance(told["samples"], dict) and isinstance(told["sections"], dict)
    assert told["samples"][on("a", OLD)] == [{"wall": 0.2, "cpu": 0.4}, {"wall": 0.3, "cpu": 0.6}, {"wall": 0.2, "cpu": 0.4}]
    row = told["sections"]["Starts"][0]
    assert (row["judged"], row["verdict"], row["values"][OLD]["verdict"]) == (NEW, "met", "missed")
    assert row["values"][OLD]["ours"] == 0.2


def test_the_plot_has_a_dot_for_each_sample_and_a_bar_for_each_median() -> None:
    """And words are escaped."""
    panels = {"a < b": [plot.Mark("c", "#111111", [0.001, 0.01]), plot.Mark("c", "#222222", [1.0])]}
    drawn = xml.fromstring(plot.svg(panels, {OLD: "#111111"}, "title & more"))
    names = [element.tag.rpartition("}")[2] for element in drawn]
    assert names.count("circle") == 3
    words = [element.text for element in drawn]
    assert {"a < b", "Starts: title & more", OLD, "1000"} <= set(words)
    assert words.count("c") == 1  # the name of a subject stands once for all its stacks


def test_the_plot_of_a_run_shows_what_it_measured() -> None:
    """Floors, peers and stacks; nothing else, and an empty run draws too."""
    taken = Samples()
    for name in (on("F_boot", OLD), on("F_boot", NEW), "ctr run, runc", "something else"):
        taken.add(name, Sample(0.5, None))
    drawn = plot.starts(taken, [OLD, NEW], "t")
    assert [words in drawn for words in ("F_boot", "runc", "something else", "F_restore")] == [True, True, False, False]
    assert drawn.count("<circle") == 3
    assert "<svg" in plot.starts(Samples(), [OLD, NEW], "t")
