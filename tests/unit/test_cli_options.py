"""The command line syntax of `hako`."""

from __future__ import annotations

import pytest

from shim.cli.options import MANY, Option, UsageError, help_text, parse

OPTIONS = [
    Option("-i --interactive", "", "keep stdin open"),
    Option("-t --tty", "", "terminal"),
    Option("--rm", "", "remove afterwards"),
    Option("-e --env", "KEY=VALUE", "variable", MANY),
    Option("--name", "NAME", "name"),
]


def test_flags_join_and_values_follow_in_every_form() -> None:
    """`-it`, `-e A=B`, `-eA=B`, `--env=A=B` and `--env A=B` mean what they mean to docker."""
    argv = ["-it", "-e", "A=1", "-eB=2", "--env=C=3", "--env", "D=4", "x"]
    parsed = parse(OPTIONS, argv, end_at_first_word=True)
    assert parsed.flag("--interactive") and parsed.flag("--tty") and not parsed.flag("--rm")
    assert parsed.many("--env") == ["A=1", "B=2", "C=3", "D=4"]


def test_options_end_at_the_image() -> None:
    """What follows the first word is the user's command, options of the same names included."""
    parsed = parse(OPTIONS, ["--rm", "image", "ls", "--rm=no", "-it", "--", "x"], end_at_first_word=True)
    assert parsed.words == ["image", "ls", "--rm=no", "-it", "--", "x"]
    assert not parsed.flag("--tty")


def test_options_may_follow_words_where_no_command_does() -> None:
    """`hako rm NAME -t` works like `hako rm -t NAME`, and `--` ends the options."""
    parsed = parse(OPTIONS, ["a", "-t", "--", "-i"], end_at_first_word=False)
    assert parsed.words == ["a", "-i"] and parsed.flag("--tty") and not parsed.flag("--interactive")


def test_a_flag_can_be_switched_off() -> None:
    """`--rm=false` after `--rm` wins."""
    assert not parse(OPTIONS, ["--rm", "--rm=false"], end_at_first_word=True).flag("--rm")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nmae", "x"], "--nmae"),
        (["-x"], "-x"),
        (["-ix"], "-x"),
        (["--name"], "--name NAME"),
        (["-e"], "-e KEY=VALUE"),
        (["--rm=maybe"], "--rm=maybe"),
    ],
)
def test_a_wrong_word_is_named(argv: list[str], words: str) -> None:
    """An unknown option, a missing value and a bad on-or-off say which word is wrong."""
    with pytest.raises(UsageError) as caught:
        parse(OPTIONS, argv, end_at_first_word=True)
    assert words in str(caught.value)


def test_an_unfinished_option_gets_a_suggestion() -> None:
    """`--inter` is refused, not guessed, with the option it begins."""
    with pytest.raises(UsageError, match="did you mean --interactive"):
        parse(OPTIONS, ["--inter"], end_at_first_word=True)


def test_help_lists_each_option_once() -> None:
    """`--help` has usage, every name and what the option takes."""
    text = help_text("run IMAGE", "run it", OPTIONS)
    assert text.startswith("Usage: hako run IMAGE\n\nRun it.\n")
    assert [line.split()[0].rstrip(",") for line in text.splitlines()[5:]] == [
        "-i",
        "-t",
        "--rm",
        "-e",
        "--name",
    ]
    assert "-e, --env KEY=VALUE" in text and "may be given again" in text
