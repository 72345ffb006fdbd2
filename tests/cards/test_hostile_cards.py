"""Files of cards that were made to do harm, or are no files: refused at once, with our error, each by itself."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import commandline
import pytest
import small
from commandline import Run

from clipbench.cards.overrides import parse_assignments
from clipbench.cards.strict_yaml import Document
from clipbench.catalog import Catalog
from clipbench.errors import CardError, ClipbenchError
from clipbench.utils.parsing import MOST_YAML

run = commandline.run
TWO = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("{a: " * 100_000, "nested deeper than 64 levels"),
        ("- " * 100_000, "nested deeper than 64 levels"),
        ("? " * 100_000, "nested deeper than 64 levels"),
        ("".join(" " * i + "a:\n" for i in range(2_000)), ":65: nested deeper than 64 levels"),
        (TWO, "it unfolds to more than 500,000 values or 8 MiB of text"),
        (MERGED, "it unfolds to more than 500,000 values or 8 MiB of text"),
        (f'a: &a "{"x" * 100_000}"\nb: [{"*a, " * 200}]', ":2: it unfolds to more than"),
        (f"a: [{'1, ' * 600_000}]", "it unfolds to more than"),
        ("a: &a [*a]", "the alias *a stands inside of what it names"),
        ("a: &a {b: {c: *a}}", "the alias *a stands inside of what it names"),
        ("a: *b", "undefined alias"),
        (f"a: {'1' * 5_000}", "a number has at most 100 characters"),
        (f"a: 1{':1' * 50_000}", "a number has at most 100 characters"),
        ("a: !!binary aGk=", "the tag binary is not for cards"),
        ("a: !!set {b, c}", "the tag set is not for cards"),
        ('a: !!python/object/apply:os.system ["true"]', "could not determine a constructor"),
        ("a:\n\tb: 1", ":2: found character that cannot start any token"),
        ('a: "\\ud800"', "invalid Unicode character"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("#" * (MOST_YAML + 1), "cannot be read (it is larger than 8 MiB)"),
    ],
)
def test_yaml_that_is_made_to_do_harm(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(CardError) as caught:
        Document(path)
    assert caught.value.message.startswith(str(path))
    assert words in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 300


def test_aliases_as_people_use_them_are_read(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text("a: &a {x: 1, y: [1, 2]}\nb: *a\nc:\n  <<: *a\n  z: 3\n" + "d: " + "[" * 63 + "]" * 63)
    value = Document(path).value
    assert value["b"] == {"x": 1, "y": [1, 2]}
    assert value["c"] == {"x": 1, "y": [1, 2], "z": 3}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[" * 100_000, "nested deeper"),
        (f"1{':1' * 50_000}", "at most 100 characters"),
        (f"&a [{'*a'}]", "stands inside"),
    ],
)
def test_values_of_set_are_yaml_too(value: str, words: str) -> None:
    with pytest.raises(CardError, match=words):
        parse_assignments([f"optim.lr={value}"])


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    own = Path.cwd()
    os.chdir(path.parent)  # an address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(own)


def _large(path: Path) -> None:
    path.touch()
    os.truncate(path, 10 << 30)


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, "it is a folder"),
    "pipe": (_pipe, "it is a pipe"),
    "socket": (_socket, "it is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "gone": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    "large": (_large, "it is larger than 8 MiB"),
    "latin": (lambda path: path.write_bytes("title: é".encode("latin-1")), "not UTF-8 text"),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("mixed", [True, False])
def test_one_bad_file_stops_only_what_needs_it(
    tmp_path: Path,
    run: Run,
    kind: str,
    mixed: bool,
) -> None:
    make, words = STRANGE[kind]
    folder = tmp_path / "cards" if mixed else tmp_path / "cards" / "tasks"
    small.write_task(tmp_path / "cards") if mixed else small.write_task(folder)
    make(folder / "bad.yaml")
    listed = run("list", "tasks", "--cards", tmp_path / "cards")
    assert listed.code == 0, listed.err
    assert "animals-zs" in listed.out
    assert "bad" not in listed.out
    assert f"left out: {folder}/bad.yaml" in listed.err
    assert words in listed.err
    assert Catalog([tmp_path / "cards"]).task("animals-zs").id == "animals-zs"
    wanted = run("show", "bad-zs", "--cards", tmp_path / "cards")
    assert wanted.code == 2
    assert words in wanted.err
    checked = run("check", "--cards", tmp_path / "cards", "--results", tmp_path / "none", "--json")
    assert checked.code == 2
    assert sum(words in problem for problem in json.loads(checked.out)["problems"]) == 1


@pytest.mark.parametrize("sign", ["\n", "\x1b[31m", "\u202e", "\x7f", "\u2028", "\udcff"])
def test_no_id_holds_a_control_character(tmp_path: Path, run: Run, sign: str) -> None:
    small.write_task(tmp_path / "cards")
    named = tmp_path / "cards" / f"a{sign}b.yaml"
    named.write_bytes((tmp_path / "cards" / "animals.yaml").read_bytes())
    done = run("list", "tasks", "--cards", tmp_path / "cards")
    assert done.code == 0
    assert "a card's file name, which is its id, has no" in done.err
    assert f"a{sign}b" not in done.out + done.err
    model = tmp_path / f"m{sign}.pt"
    model.write_bytes(b"")
    done = run("eval", "--model", model, "--task", "animals-zs", "--cards", tmp_path / "cards")
    assert done.code == 2
    assert "in its name, which no id may have" in done.err


def test_a_home_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ClipbenchError, match="~nobody-of-this-name/cards: where the home folder is, is not known"
    ):
        Catalog([Path("~nobody-of-this-name/cards")]).dataset("digits")
