"""Cards: every way of getting one wrong has its own error, with the file, the line and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from clipbench.cards.base import Strict, fingerprint
from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.errors import CardError
from clipbench.models import adapter

RECIPE = (Path(adapter.__file__).parents[1] / "pretrain" / "recipes" / "clip-lite-digits.yaml").read_text()
TASK = """\
title: Pets
source:
  builtin: digits
splits:
  test: {name: test}
classes:
  - cat
  - dog
templates:
  default:
    - "a {c}."
prompts_source: ours
protocols:
  zs: {}
"""
MODEL = """\
title: Small
family: clip
config: {arch: RN50, quick_gelu: true}
preprocess:
  size: 32
  mean: [0.5, 0.5, 0.5]
  std: [0.5, 0.5, 0.5]
weights: {file: a.pt}
"""


def change(text: str, old: str, new: str) -> str:
    """`text` with its only `old` replaced."""
    assert text.count(old) == 1
    return text.replace(old, new)


def line_of(text: str, part: str) -> int:
    """1-based line of the first `part`."""
    return text[: text.index(part)].count("\n") + 1


def load(path: Path, text: str | bytes, model: type[BaseModel] = TaskCard) -> BaseModel:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse(model, Document(path))


def problems(path: Path, text: str | bytes, model: type[BaseModel] = TaskCard) -> list[str]:
    """The lines of the error that `text` gives as a card, each without the folder."""
    with pytest.raises(CardError) as caught:
        load(path, text, model)
    return caught.value.message.replace(f"{path.parent}/", "").splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pets.yaml"


# ----------------------------------------------------------------- what is right


def test_a_card_becomes_a_typed_object_with_its_defaults(path: Path) -> None:
    card = load(path, TASK)
    assert isinstance(card, TaskCard)
    assert card.classes == ("cat", "dog")
    assert card.templates == {"default": ("a {c}.",)}
    assert card.kind == "single-label"
    assert card.columns.image == "image"
    assert card.splits["test"].rows is None


def test_class_specific_prompts_keep_their_class(path: Path) -> None:
    card = load(path, change(TASK, '    - "a {c}."\n', "    dog: [a hound, a pup]\n    cat: [a tom]\n"))
    assert isinstance(card, TaskCard)
    assert card.templates["default"] == {"dog": ("a hound", "a pup"), "cat": ("a tom",)}
    again = TaskCard.model_validate(card.canonical())
    assert again == card


def test_a_card_is_frozen_in_all_its_parts(path: Path) -> None:
    card = load(path, MODEL, ModelCard)
    assert isinstance(card, ModelCard)
    with pytest.raises(ValidationError, match="frozen"):
        card.title = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        card.preprocess.size = 3  # type: ignore[misc]
    assert isinstance(card.preprocess.mean, tuple)


def test_the_fingerprint_sees_values_not_layout(path: Path) -> None:
    plain = load(path, MODEL, ModelCard)
    relaid = change(MODEL, "mean: [0.5, 0.5, 0.5]", "mean:\n  - 0.5\n  - 0.5\n  - 0.5")
    moved = change(relaid, "title: Small\n", "") + "title: Small\n"
    other = load(path, change(MODEL, "size: 32", "size: 33"), ModelCard)
    assert isinstance(plain, Strict)
    assert isinstance(other, Strict)
    same = load(path, moved, ModelCard)
    assert isinstance(same, Strict)
    assert fingerprint(plain.canonical()) == fingerprint(same.canonical())
    assert fingerprint(plain.canonical()) != fingerprint(other.canonical())


@pytest.mark.parametrize("values", [{"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}])
def test_the_fingerprint_is_of_canonical_json(values: dict[str, Any]) -> None:
    # echo -n '{"a":1,"b":[1,2]}' | sha256sum
    assert fingerprint(values) == "8baa73198470c7bb4c3ce142a8fd651affc0310d878bb9bd159e37a573fb4874"


# --------------------------------------------------------------------------- keys


def test_an_unknown_key_names_the_nearest_and_all_allowed(path: Path) -> None:
    found = problems(path, change(TASK, "prompts_source:", "prompt_source:"))
    line = line_of(TASK, "prompts_source")
    assert found[0].startswith(
        f'pets.yaml:{line}: unknown key "prompt_source"; did you mean "prompts_source"? (allowed: title, '
    )
    assert found[0].endswith("protocols, notes)")


@pytest.mark.parametrize(
    ("model", "text", "old", "new", "expected"),
    [
        (
            TaskCard,
            TASK,
            "{name: test}",
            "{name: test, row: 3}",
            'unknown key "splits.test.row"; did you mean "rows"? (allowed: name, rows, part)',
        ),
        (
            TaskCard,
            TASK,
            "builtin: digits",
            "builtin: digits\n  revison: abc",
            'unknown key "source.revison"; did you mean "revision"? '
            "(allowed: hub, config, revision, builtin, path, local, torchvision, archive, gigabytes, lacks)",
        ),
        (
            ModelCard,
            MODEL,
            "  size: 32",
            "  sise: 32",
            'unknown key "preprocess.sise"; did you mean "size"? '
            "(allowed: size, crop, resize, fill, interpolation, channels, order, orientation, centre, transparency, "
            "mean, std)",
        ),
        (
            ModelCard,
            MODEL,
            "title: Small",
            "title: Small\nreported:\n  - {task: a-zs, metric: acc1, percent: 1, source: b,\n"
            "     confidence: primary, percnt: 2}",
            'unknown key "reported[0].percnt"; did you mean "percent"? '
            "(allowed: task, metric, percent, source, confidence)",
        ),
        (
            Recipe,
            RECIPE,
            "negatives: 16}",
            "negatives: 16, negativs: 2}",
            'unknown key "objective.negativs"; did you mean "negatives"? (allowed: kind, negatives, prior_weight, '
            "clusters, hard_share)",
        ),
    ],
)
def test_an_unknown_key_below_is_held_against_what_is_allowed_there(
    path: Path, model: type[BaseModel], text: str, old: str, new: str, expected: str
) -> None:
    changed = change(text, old, new)
    word = expected.split('"')[1].split(".")[-1]
    assert problems(path, changed, model) == [f"pets.yaml:{line_of(changed, f'{word}:')}: {expected}"]


def test_a_missing_key_below_points_to_the_part_that_lacks_it(path: Path) -> None:
    line = line_of(TASK, "  test:")
    assert problems(path, change(TASK, "{name: test}", "{rows: 3}")) == [
        f'pets.yaml:{line}: missing key "splits.test.name"'
    ]


def test_a_duplicate_key_names_both_lines(path: Path) -> None:
    again = len(TASK.splitlines()) + 1
    assert problems(path, TASK + "title: again\n") == [
        f'pets.yaml:{again}: duplicate key "title" (first at line 1)'
    ]


def test_a_duplicate_key_is_found_at_any_depth(path: Path) -> None:
    text = change(TASK, "  test: {name: test}\n", "  test: {name: test}\n  test: {name: val}\n")
    assert problems(path, text) == ['pets.yaml:6: duplicate key "test" (first at line 5)']
    inside_a_list = change(TASK, "  - dog", "  - {a: 1, a: 2}")
    assert problems(path, inside_a_list) == ['pets.yaml:8: duplicate key "a" (first at line 8)']


@pytest.mark.parametrize(
    ("key", "words"), [("yes", "a boolean"), ("1", '"1"'), ("~", '"~"'), ("{c}", "{ or ["), ("[a]", "{ or [")]
)
def test_a_key_that_is_not_text_is_refused_where_it_stands(path: Path, key: str, words: str) -> None:
    last = len(TASK.splitlines()) + 1
    (problem,) = problems(path, f"{TASK}{key}: x\n")
    assert problem.startswith(f"pets.yaml:{last}: ")
    assert words in problem
    assert "put it in quotes" in problem


def test_all_problems_are_named_at_once(path: Path) -> None:
    text = change(TASK, "title: Pets", "titel: Pets")
    text = change(text, "  - dog", "  - no")
    text = change(text, "{name: test}", "{name: test, rows: many}")
    found = problems(path, text)
    places = {problem.split(":")[1] for problem in found}
    assert len(found) == 4
    assert places == {"1", "5", "8"}


# ------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("word", "read"), [("no", "false"), ("yes", "true"), ("on", "true"), ("Off", "false")]
)
def test_a_yaml_boolean_in_a_class_list(path: Path, word: str, read: str) -> None:
    assert problems(path, change(TASK, "- dog", f"- {word}")) == [
        f"pets.yaml:8: classes[1]: expected text, found the boolean {read} (YAML reads a bare yes, no, on, off, "
        'true, false as a boolean); put it in quotes, like "no"'
    ]
    assert load(path, change(TASK, "- dog", f'- "{word}"'))


def test_a_number_in_a_class_list(path: Path) -> None:
    assert problems(path, change(TASK, "- dog", "- 101")) == [
        'pets.yaml:8: classes[1]: expected text, found the number 101; put it in quotes: "101"'
    ]


@pytest.mark.parametrize("value", ["~", "[a]", "{c}", "2020-01-01"])
def test_other_things_that_are_no_class_name(path: Path, value: str) -> None:
    (problem,) = problems(path, change(TASK, "- dog", f"- {value}"))
    assert problem.startswith("pets.yaml:8: classes[1]: expected text, found ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("size: 32", "size: '32'", '5: preprocess.size: input should be a valid integer, found "32"'),
        ("size: 32", "size: 32.0", "5: preprocess.size: input should be a valid integer, found 32.0"),
        ("size: 32", "size: 0", "5: preprocess.size: input should be greater than 0, found 0"),
        ("size: 32", "channels: 2", "5: preprocess.channels: input should be 1 or 3, found 2"),
        (
            "size: 32",
            "interpolation: cubic",
            "5: preprocess.interpolation: input should be 'nearest', 'bilinear', 'bicubic' or "
            "'bilinear-no-antialias', found \"cubic\"",
        ),
        (
            "size: 32",
            "interpolation: bilinear-no-antialias",
            "5: bilinear-no-antialias needs order: convert-first",
        ),
        ("mean: [0.5", "mean: [.nan", "6: preprocess.mean[0]: input should be a finite number, found NaN"),
        ("std: [0.5", "std: [.inf", "7: preprocess.std[0]: input should be a finite number, found Infinity"),
        ("mean: [0.5, 0.5, 0.5]", "mean: 0.5", "6: preprocess.mean: expected a list, found 0.5"),
        (
            "mean: [0.5, 0.5, 0.5]",
            "mean: [0.5]",
            "4: preprocess: mean and std need 3 values each, one a channel",
        ),
        ("std: [0.5", "std: [0", "4: preprocess: std values must be above 0"),
        ("{file: a.pt}", "a.pt", '8: weights: expected a mapping of keys to values, found "a.pt"'),
        (
            "{file: a.pt}",
            "{file: a.pt, open_clip: b}",
            "8: weights: give exactly one of file, open_clip, url, gdrive, hf, package (found file, open_clip)",
        ),
        (
            "{file: a.pt}",
            "{}",
            "8: weights: give exactly one of file, open_clip, url, gdrive, hf, package (found none)",
        ),
        (
            "{file: a.pt}",
            "{url: example.org/a.pt, link_source: x}",
            '8: weights.url: expected an http(s) address of a file, found "example.org/a.pt"',
        ),
        (
            "{file: a.pt}",
            "{gdrive: 'https://drive.google.com/file/d/1SZJ8CU5dDIwuvZ/view', link_source: x}",
            "8: weights.gdrive: expected the id of a Google Drive file: what follows /d/ or id= in its link, found "
            '"https://drive.google.com/file/d/1SZJ8CU5dDIwuvZ/view"',
        ),
        (
            "{file: a.pt}",
            "{hf: owner/repo}",
            '8: weights.hf: expected owner/repo/path or owner/repo@revision/path, found "owner/repo"',
        ),
        (
            "{file: a.pt}",
            "{hf: owner/repo/../../a.pt}",
            "8: weights.hf: expected owner/repo/path or owner/repo@revision/path, found "
            '"owner/repo/../../a.pt"',
        ),
        (
            "{file: a.pt}",
            "{package: a.pth}",
            '8: weights.package: expected <package>/<path of the file in site-packages>, found "a.pth"',
        ),
        (
            "{file: a.pt}",
            "{gdrive: 1SZJ8CU5dDIwuvZ}",
            "8: weights: gdrive needs link_source: where the link was read",
        ),
        (
            "{file: a.pt}",
            "{file: a.pt, link_source: x}",
            "8: link_source goes with url, gdrive or hf, not file",
        ),
        (
            "{file: a.pt}",
            "{file: a.pt, sha256: 12345678}",
            '8: weights.sha256: expected text, found the number 12345678; put it in quotes: "12345678"',
        ),
    ],
)
def test_values_of_the_wrong_kind(path: Path, old: str, new: str, expected: str) -> None:
    assert problems(path, change(MODEL, old, new), ModelCard) == [f"pets.yaml:{expected}"]


def test_sources_of_weights_that_a_card_does_not_use_leave_its_fingerprint_alone() -> None:
    plain = {"file": "a.pt", "open_clip": None, "sha256": None}
    assert Weights(file="a.pt").canonical() == plain
    hub = Weights(hf="owner/repo@v1.0/below/a.pt", link_source="its README")
    assert hub.source == ("hf", "owner/repo@v1.0/below/a.pt")
    assert hub.canonical() == plain | {
        "file": None,
        "hf": "owner/repo@v1.0/below/a.pt",
        "link_source": "its README",
    }
    assert Weights.model_validate(hub.canonical()) == hub


def test_a_long_value_is_cut_in_the_error(path: Path) -> None:
    (problem,) = problems(path, change(TASK, "{name: test}", f"[{', '.join('a' * 200)}]"))
    assert problem.endswith("...")
    assert len(problem) < 160


def test_a_recipe_names_the_objectives_that_there_are(path: Path) -> None:
    text = change(RECIPE, "kind: clip-lite, negatives", "kind: clop, negatives")
    line = line_of(text, "objective:")
    assert problems(path, text, Recipe) == [
        f'pets.yaml:{line}: objective.kind: unknown "clop"; allowed: clip, clip-lite, declip, defilip, filip, '
        "siglip, slip"
    ]
    text = change(RECIPE, "kind: clip-lite, negatives", "negatives")
    assert problems(path, text, Recipe) == [f'pets.yaml:{line}: missing key "objective.kind"']


def test_a_recipe_that_contradicts_itself_points_to_the_value(path: Path) -> None:
    text = change(RECIPE, "negatives: 16}", "negatives: 128}")
    (problem,) = problems(path, text, Recipe)
    assert problem.startswith(
        f"pets.yaml:{line_of(text, 'objective:')}: objective.negatives (128) must be below"
    )
    text = change(
        RECIPE, "evaluate: [digits-zs, digits-scenes-zs, digits-scenes-ret, digits-scenes-ground]", ""
    )
    assert problems(path, text, Recipe) == [
        f'pets.yaml:{line_of(text, "target:")}: target.task "digits-zs" is not in evaluate (empty)'
    ]
    path.write_text(change(RECIPE, "evaluate: [digits-zs, ", "evaluate: ["))
    with pytest.raises(CardError, match=r'target\.task: unknown task of evaluate "digits-zs"'):
        Catalog().recipe(str(path))


# ---------------------------------------------------------------- classes, prompts


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"a {c}."', "a cat.", '11: templates "default": "a cat." has no {c} for the class name'),
        (
            '"a {c}."',
            '"a {c}."\n    - "{ c }"',
            '12: templates "default": "{ c }" has no {c} for the class name',
        ),
        ('    - "a {c}."\n', "    []\n", '10: templates "default" is empty'),
        ("  default:", "  simple:", '9: templates needs a list named "default" (found simple)'),
        ('\n    - "a {c}."', ' "a {c}."', '10: templates.default: expected a list, found "a {c}."'),
        (
            '    - "a {c}."\n',
            "    dog: [a]\n    cow: [b]\n",
            '10: templates "default" has no prompt for class "cat" (1 missing)',
        ),
        (
            '    - "a {c}."\n',
            "    dog: [a]\n    cat: []\n",
            '12: templates "default" has no prompt for class "cat" (1 missing)',
        ),
        (
            '    - "a {c}."\n',
            "    dog: [a]\n    cat: [b]\n    dogs: [c]\n",
            '13: templates "default" names the unknown class "dogs"; did you mean "dog"?',
        ),
        (
            '    - "a {c}."\n',
            "    dog: [a]\n    cat: b\n",
            '12: templates.default.cat: expected a list, found "b"',
        ),
        ("  - dog\n", "", "6: classes: a classification set needs at least 2 classes (found 1)"),
        (
            "prompts_source: ours",
            "prompts_source: ours\nlabel_names: [a]",
            "13: label_names has 1 entries, classes 2",
        ),
        (
            "prompts_source: ours",
            "prompts_source: ours\nlabel_names: [a, a]",
            "13: label_names holds the same name twice",
        ),
        (
            "protocols:\n  zs: {}",
            "protocols: {}",
            "13: protocols is empty: name at least one, for example zs: {}",
        ),
        ("zs: {}", "zs:", "14: protocols.zs: expected a mapping of keys to values, found null"),
        (
            "builtin: digits",
            "builtin: digits\n  hub: a/b",
            "2: source: give exactly one of hub, torchvision, builtin, path, local (found hub, builtin)",
        ),
    ],
)
def test_classes_and_prompts_that_do_not_go_together(path: Path, old: str, new: str, expected: str) -> None:
    assert problems(path, change(TASK, old, new)) == [f"pets.yaml:{expected}"]


# --------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "expected a mapping of keys to values, found an empty file"),
        ("# nothing yet\n", 1, "expected a mapping of keys to values, found an empty file"),
        ("- a\n", 1, "expected a mapping of keys to values, found list"),
        (change(TASK, "  - cat", "\t- cat"), 7, "cannot start any token"),
        (change(TASK, "name: test}", "name: test"), 6, ""),
        (change(TASK, "title: Pets", "title: Pets: cats"), 1, "mapping values are not allowed"),
        (TASK + "---\ntitle: b\n", 15, "another document"),
        (TASK + "notes: *nowhere\n", 15, "undefined alias"),
        (TASK + "notes: &a [*a]\n", 15, "the alias *a stands inside of what it names"),
        (TASK + "notes: !!python/object/apply:os.getcwd []\n", 15, "could not determine a constructor"),
        (
            TASK + "notes: 2020-99-99\n",
            15,
            "2020-99-99 cannot be read (month must be in 1..12); put it in quotes",
        ),
        (change(TASK, "- cat", "- é\0"), 7, "unacceptable character"),
        (change(TASK, "- cat", "- chaté").encode("latin-1"), 7, "not UTF-8 text"),
    ],
)
def test_what_is_no_yaml_mapping_says_so_with_its_line(
    path: Path, text: str | bytes, line: int, words: str
) -> None:
    (problem,) = problems(path, text)
    assert problem.startswith(f"pets.yaml:{line}: ")
    assert words in problem


def test_a_file_that_cannot_be_read(path: Path) -> None:
    path.mkdir()
    with pytest.raises(CardError, match=r"pets\.yaml: cannot be read \(it is a folder\)"):
        Document(path)


def test_a_byte_order_mark_is_no_error(path: Path) -> None:
    assert load(path, b"\xef\xbb\xbf" + TASK.encode())


# --------------------------------------------------------------------------- base


def user_cards(folder: Path, **texts: str) -> Catalog:
    """A catalog with task cards of one's own."""
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, text in texts.items():
        (tasks / f"{name}.yaml").write_text(text)
    return Catalog([folder])


def test_a_card_takes_what_it_leaves_out_from_its_base(tmp_path: Path) -> None:
    catalog = user_cards(tmp_path, pets=TASK, more="base: pets\ntitle: More\nclasses: [cow, pig, hen]\n")
    base, card = catalog.dataset("pets").card, catalog.dataset("more").card
    assert card.title == "More"
    assert card.classes == ("cow", "pig", "hen")
    assert card.templates == base.templates
    assert card.source == base.source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: A\nbase: pet\n", ':2: unknown base card "pet"; did you mean "pets"?'),
        ("base: [pets]\ntitle: A\n", ":1: unknown base card"),
        ("title: A\nbase: mine\n", ":2: the card is its own base: mine → mine"),
        ("base: {crad: pets}\ntitle: A\n", ':1: unknown key "base.crad"; did you mean "card"?'),
        (
            "base: {card: pets, classes: two}\ntitle: A\n",
            ':1: unknown class set "two": pets has no class_sets',
        ),
        ("base: broken\ntitle: A\n", ":1: the base card "),
        ("base: pets\ntitel: A\n", ':2: unknown key "titel"; did you mean "title"?'),
        ("base: pets\nclasses:\n  - cow\n  - on\n", ":4: classes[1]: expected text, found the boolean true"),
    ],
)
def test_errors_of_a_card_with_a_base_point_into_the_card(tmp_path: Path, text: str, message: str) -> None:
    catalog = user_cards(tmp_path, pets=TASK, second="base: pets\n", broken="- a\n", mine=text)
    with pytest.raises(CardError) as caught:
        catalog.dataset("mine")
    assert f"{tmp_path}/tasks/mine.yaml{message}" in caught.value.message


# ---------------------------------------------------------------------- preprocess


def test_preprocess_side_is_the_crop_where_there_is_one() -> None:
    grey = {"channels": 1, "mean": (0.5,), "std": (0.5,)}
    assert Preprocess.model_validate({"size": 256, "crop": 224, **grey}).side == 224
    assert Preprocess.model_validate({"size": 256, **grey}).side == 256


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("kind: captions\nclasses: [cat, dog]\n", "a set of captions has no classes"),
        ("kind: expressions\nprompts_source: mine\n", "a set of expressions has no prompts_source"),
        ("classes: [cat, dog]\n", 'missing key "templates", which a single-label set needs'),
        (
            "kind: captions\nexpressions: classes\n",
            r"mine\.yaml:6: expressions: classes belongs to sets of kind expressions",
        ),
        ("kind: captions\nalso: [captions]\n", "also names captions or one kind twice"),
        ("kind: captions\nalso: [expressions, expressions]\n", "also names captions or one kind twice"),
    ],
)
def test_classes_and_prompts_belong_to_sets_with_labels(tmp_path: Path, extra: str, message: str) -> None:
    card = "title: T\nsource: {local: true}\nsplits: {test: {name: test}}\nprotocols: {zs: {}}\n" + extra
    (tmp_path / "mine.yaml").write_text(card)
    with pytest.raises(CardError, match=message):
        Catalog((tmp_path,)).dataset("mine")


def test_a_protocol_refuses_a_set_of_another_kind(tmp_path: Path) -> None:
    card = (
        "title: T\nkind: captions\nsource: {local: true}\nsplits: {test: {name: test}}\nprotocols: {zs: {}}\n"
    )
    (tmp_path / "mine.yaml").write_text(card)
    with pytest.raises(CardError, match="zs is for sets of kind single-label or multi-label"):
        Catalog((tmp_path,)).dataset("mine")
    (tmp_path / "mine.yaml").write_text(card + "also: [expressions]\n")
    with pytest.raises(CardError, match="this one is of kind captions and expressions"):
        Catalog((tmp_path,)).dataset("mine")


# ---------------------------------------------------------------- all at once


def test_everything_wrong_with_a_task_card_is_told_at_once(tmp_path: Path) -> None:
    text = """\
title: 3
sorce: {local: true}
source: {local: true}
splits: {test: {name: "test", rows: -1}}
classes: nowhere
templates: {default: ["{c}"], other: nix}
prompts_source: "x"
protocols:
  zs: {primari: acc1, variants: {r: {tem: 1}}}
  lp: {spilt: test}
  foo: {}
"""
    catalog = user_cards(tmp_path, mine=text)
    with pytest.raises(CardError) as caught:
        catalog.dataset("mine")
    lines = caught.value.message.splitlines()
    found = [line.removeprefix(f"{tmp_path}/tasks/mine.yaml:").partition(" (")[0] for line in lines]
    assert [line.partition(";")[0] for line in found] == [
        "1: title: expected text, found the number 3",
        '2: unknown key "sorce"',
        "4: splits.test.rows: input should be greater than 0, found -1",
        '5: classes: unknown shared prompts "nowhere"',
        '6: templates.other: unknown shared prompts "nix"',
        '9: unknown key "protocols.zs.primari"',
        '9: unknown key "protocols.zs.variants.r.tem"',
        '10: unknown key "protocols.lp.spilt"',
        '11: unknown protocol "foo"',
    ]


def test_everything_wrong_with_the_protocols_of_a_card_is_told_at_once(tmp_path: Path) -> None:
    head = TASK.partition("protocols:")[0]
    text = (
        head
        + """protocols:
  zs: {primari: acc1, variants: {q: {templates: nope}, r: {tem: 1}}}
  ret: {}
  foo: {}
"""
    )
    catalog = user_cards(tmp_path, mine=text)
    with pytest.raises(CardError) as caught:
        catalog.dataset("mine")
    for part in ("primari", "variants.r.tem", "ret is for sets of kind captions", 'unknown protocol "foo"'):
        assert caught.value.message.count(part) == 1, caught.value.message


def test_everything_wrong_with_a_model_card_is_told_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "model_cards"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "title: x\nfamily: clip\nconfig: {arch: 3, nope: 1}\npreprocess: {size: big}\nwieghts: {}\n"
    )
    with pytest.raises(CardError) as caught:
        Catalog((tmp_path,)).model("mine")
    for part in ("config.arch", "config.nope", "preprocess.size", '"wieghts"', 'missing key "weights"'):
        assert part in caught.value.message
