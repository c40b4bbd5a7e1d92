"""What the bench makes of its samples: ratios, bounds, which stack is judged; the order of a round (tests/bench)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from shim.errors import HakoError
from tests.bench import catalogue, gvisor, settings, stacks, starts
from tests.bench.lab import Lab
from tests.bench.measure import RunFailed, Sample
from tests.bench.rows import ALONE, Figure, Line, Row, Value, lines, of_figures, verdict
from tests.bench.stacks import Stack, on
from tests.bench.stats import ratio_interval
from tests.bench.subjects import Samples, Subject, interleave, single

OLD, NEW = "Debian 12", stacks.NEWER


def samples(walls: dict[str, list[float]]) -> Samples:
    """These wall times, and twice as much processor time."""
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
        (2.1, None, 2.0, False, "aim missed"),
        (0.9, 0.5, 0.8, True, "aim"),
        (0.6, 0.5, 0.8, True, "met"),
        (0.4, 0.5, 0.8, True, "missed"),
    ],
)
def test_bounds(value: float, must: float | None, aim: float | None, at_least: bool, said: str) -> None:
    """From above for times, from below for speeds."""
    assert verdict(value, must, aim, at_least=at_least) == said


def test_a_row_has_a_ratio_on_each_stack() -> None:
    """Against what was measured on the same stack, or on none; a stack without samples has no value."""
    taken = samples({on("a", OLD): [2.0] * 3, on("a", NEW): [3.0] * 3, on("b", OLD): [1.0] * 3, "c": [6.0] * 3})
    rows = [Row("a over b", "a", "b"), Row("a over c", "a", "c"), Row("b over c", "b", "c"), Row("nothing", "d", "c")]
    found = {line.name: {stack: value.value for stack, value in line.values.items()} for line in lines(rows, taken, [OLD, NEW])}
    assert found == {"a over b": {OLD: 2.0}, "a over c": {OLD: 2 / 6, NEW: 0.5}, "b over c": {OLD: 1 / 6}}


def test_a_row_of_no_stack_has_one_ratio() -> None:
    """Peers, and what has no VM."""
    found = lines([Row("a over b", "a", "b", must=1)], samples({"a": [2.0], "b": [1.0]}), [OLD, NEW])
    assert [(line.values.keys(), line.judged, line.verdict) for line in found] == [({ALONE: 0}.keys(), ALONE, "missed")]


def test_a_speed_is_the_other_times_over_ours() -> None:
    """Half as fast is 0.5, whichever subject is named first, and so is its processor time."""
    (line,) = lines([Row("speed", "a", "b", speed=True)], samples({"a": [2.0, 2.0], "b": [1.0, 1.0]}), [])
    value = line.values[ALONE]
    assert value.pair is not None
    assert (value.value, value.pair.cpu, value.pair.ours, line.at_least) == (0.5, 0.5, 2.0, True)


def test_processor_time_is_told_only_where_both_have_it() -> None:
    """Not that of half a pair."""
    taken = samples({"a": [2.0], "b": [1.0]})
    taken.taken["b"] = [Sample(1.0, None)]
    (line,) = lines([Row("a over b", "a", "b")], taken, [])
    pair = line.values[ALONE].pair
    assert pair is not None and pair.cpu is None


@pytest.mark.parametrize(("names", "chosen"), [([OLD, NEW], NEW), ([NEW], NEW), ([OLD], OLD), ([ALONE], ALONE)])
def test_the_newer_stack_is_judged_where_it_was_measured(names: list[str], chosen: str) -> None:
    """Even if the other one is better."""
    line = Line("row", {name: Value(9.0 if name == NEW else 1.0) for name in names}, must=2)
    assert (line.judged, line.verdict) == (chosen, "missed" if NEW in names else "met")


def test_figures_of_the_same_name_are_one_line() -> None:
    """A value for each stack."""
    figures = [Figure("memory", 5, "MiB", 6, None, OLD), Figure("memory", 7, "MiB", 6, None, NEW), Figure("other", 1, "x")]
    found = [(line.name, {k: v.value for k, v in line.values.items()}, line.verdict) for line in of_figures(figures)]
    assert found == [("memory", {OLD: 5, NEW: 7}, "missed"), ("other", {ALONE: 1}, "")]


# --- subjects ---------------------------------------------------------------------------------------------


def test_a_subject_that_fails_is_left_out_and_the_others_go_on() -> None:
    """With its reason, under each of its names; no sample of it is compared with anything."""
    calls: list[str] = []

    def fails() -> tuple[float, float]:
        calls.append("bad")
        if len(calls) == 2:
            raise RunFailed("no reason")
        return 1.0, 2.0

    taken = Samples()
    interleave([single("good", lambda: 1.0), Subject(("bad", "worse"), fails)], 3, taken, lambda _words: None)
    assert (len(taken.wall("good")), list(taken.taken)) == (3, ["good"])
    assert taken.failed == {"bad": "no reason", "worse": "no reason"}
    assert len(calls) == 2


def test_rounds_go_forth_and_back_and_the_first_does_not_count() -> None:
    """So that nothing always comes after the same thing."""
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return 1.0

    taken = Samples()
    subjects = [single(name, lambda name=name: run(name), lambda: order.append("-")) for name in ("a", "b")]  # type: ignore[misc]
    interleave(subjects, 2, taken, lambda _words: None)
    assert "".join(order) == "-b-a" + "-a-b" + "-b-a"
    assert len(taken.wall("a")) == 2


def test_the_processor_time_of_repeated_work_is_that_of_one() -> None:
    """As the wall time is, which the subject tells itself."""
    taken = Samples()
    taken.take(single("a", lambda: sum(range(10)) / 10, repeats=1000), keep=True)
    (cpu,) = taken.cpu("a")
    assert abs(cpu) < 0.01
    taken.take(Subject(("b", "c"), lambda: (1.0, 0.5), parts=("c",)), keep=True)
    assert [len(taken.cpu(name)) for name in ("b", "c")] == [1, 0]


def test_the_way_to_a_clones_hello_is_read_from_its_log() -> None:
    """And a pod that booted is no clone."""
    assert starts.hello("214 ms: cgroup 3, template 7, virtiofsd 17, restore 39, boot 23, connect 7") == 0.062
    with pytest.raises(RunFailed, match="launch 40"):
        starts.hello("3998 ms: template 0, launch 40, boot 3900")


# --- stacks and groups ------------------------------------------------------------------------------------


def test_a_host_without_the_newer_stack_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the run goes on with its own."""

    def refused() -> Stack:
        raise HakoError("no network")

    own = Stack(OLD, "/usr/bin/qemu-system-x86_64", "/usr/lib/qemu/virtiofsd")
    monkeypatch.setattr(stacks, "stock", lambda: own)
    monkeypatch.setattr(stacks, "fetched", refused)
    assert stacks.find("Debian") == ([own], {})  # nothing is fetched that nobody wants
    found = stacks.find()
    assert found.stacks == [own]
    assert "shim.tools --ensure qemu10 virtiofsd-rust" in found.missing["the stack QEMU 10"]
    assert "no network" in found.missing["the stack QEMU 10"]


def test_a_host_whose_own_stack_is_the_newer_one_says_what_it_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 13 has no C virtiofsd."""
    own = Stack(NEW, "q", "v")
    monkeypatch.setattr(stacks, "stock", lambda: own)
    monkeypatch.setattr(Stack, "described", lambda _self: "QEMU 10.0.2, Rust virtiofsd")
    found = stacks.find()
    assert found.stacks == [own]
    said = "this host's own is QEMU 10.0.2, Rust virtiofsd: run the bench on a Debian 12"
    assert found.missing == {"the stack of Debian 12": said}


def test_only_the_stacks_that_are_wanted_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or all, where there is none of that name."""
    own, newer = Stack(OLD, "q", "v"), Stack(NEW, "r", "w")
    monkeypatch.setattr(stacks, "stock", lambda: own)
    monkeypatch.setattr(stacks, "fetched", lambda: newer)
    wanted = {word: stacks.find(word).stacks for word in ("", "QEMU", "Debian", "Fedora")}
    assert wanted == {"": [own, newer], "QEMU": [newer], "Debian": [own], "Fedora": [own]}


def test_a_group_that_fails_on_one_stack_has_the_others_subjects() -> None:
    """And its reason."""

    class Two:
        stacks = (Stack(OLD, "q", "v"), Stack(NEW, "r", "w"))

    def on_stack(_lab: Lab, stack: Stack) -> list[Subject]:
        if stack.name == NEW:
            raise HakoError("no")
        return [single(on("a", stack), lambda: 1.0)]

    told: list[tuple[str, str]] = []
    group = catalogue.Group("g", [], on_stack, lambda _lab: [single("b", lambda: 1.0)])
    subjects = group.open(cast("Lab", Two()), lambda name, reason: told.append((name, reason)))
    assert [subject.names for subject in subjects] == [(on("a", OLD),), ("b",)]
    assert told == [("group g [QEMU 10]", "no")]


def test_gvisor_is_built_with_what_its_own_module_requires(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a module of our own: the go command refuses to build another one's program where that has exclusions."""
    source, calls = tmp_path / "source", list[tuple[str, ...]]()
    source.mkdir()
    (source / "go.mod").write_text("module gvisor.dev/gvisor\n\ngo 1.26\n\nrequire x v1\n")
    (source / "go.sum").write_text("sums")

    def go(directory: Path, *words: str) -> str:
        calls.append(words)
        if words[0] == "build":
            assert (directory / "go.sum").read_text() == "sums"
            text = (directory / "go.mod").read_text()
            assert text.startswith("module hako.invalid/") and "require x v1" in text and gvisor.VERSION in text
            (directory / "runsc").write_text("program")
        return json.dumps({"Dir": str(source)})

    monkeypatch.setattr(gvisor, "_go", go)
    monkeypatch.setenv("HAKO_CACHE_DIR", str(tmp_path / "cache"))
    assert gvisor.build().read_text() == "program"
    assert [words[0] for words in calls] == ["mod", "build"]


def test_each_way_to_start_is_a_configuration_of_hako() -> None:
    """Which reads them."""
    import tomllib

    import msgspec

    from shim.config import Config

    for mode in settings.MODES:
        told = msgspec.convert(tomllib.loads(settings.text(mode, Stack(NEW, "/q/bin/qemu", "/v/virtiofsd"))), Config)
        assert (told.hypervisor.path, told.share.daemon, told.hypervisor.accelerator) == ("/q/bin/qemu", "/v/virtiofsd", "tcg")
        assert told.factory.template == (mode != settings.COLD)
        assert told.share.shared_fs == ("none" if mode == settings.DISKS else "virtio-fs")


def test_groups_bring_what_their_rows_refer_to() -> None:
    """In the order of a round; every group is in one part of the report."""
    assert [group.name for group in catalogue.chosen(["disks"])] == ["floors", "peers", "template", "disks"]
    assert [group.name for group in catalogue.chosen(["stdio"])] == ["stdio"]
    shown = [name for names in catalogue.SECTIONS.values() for name in names]
    assert sorted(shown) == sorted(catalogue.ALL)
