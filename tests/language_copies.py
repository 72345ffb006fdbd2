"""Small copies of sets of captions in several languages, and with long captions, in the forms that authors give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import small
from caption_copies import write

#: language → captions of each of four images; none of the last one in mi, and the same text twice in de
SAID: dict[str, list[list[str]]] = {
    "en": [["a red dog", "a dog, in red"], ["two cats"], ["a green bird"], ["a house"]],
    "de": [["ein roter Hund"], ["zwei Katzen", "zwei Katzen"], ["ein grüner Vogel"], ["ein Haus"]],
    "ja": [["赤い　犬"], ["二匹の猫。"], ["緑の鳥"], ["家", "一軒の家"]],
    "fil": [["pulang aso"], ["dalawang pusa"], ["berdeng ibon"], ["bahay"]],
    "quz": [["puka alqu"], ["iskay misi"], ["q'umir pisqu"], ["wasi"]],
    "mi": [["he kurī whero"], ["e rua ngeru"], ["he manu kākāriki"], []],
    "he": [["כלב אדום\u200f"], ["שני חתולים"], ["צִפּוֹר ירוקה"], ["בית"]],
}
NAMES = ["f3ab", "0a12", "c77d", "9e01"]


def card(**changes: Any) -> dict[str, Any]:
    """A task card of a set with these languages."""
    fields: dict[str, Any] = {
        "title": "Words",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "kind": "captions",
        "languages": list(SAID),
        "protocols": {"ret": {"ks": [1, 2], "primary": "mean_recall@1"}},
    }
    return fields | changes


def write_card(folder: Path, name: str = "words", **changes: Any) -> None:
    write(folder / f"{name}.yaml", json.dumps(card(**changes)))


def write_xm3600(root: Path, languages: Sequence[str] = tuple(SAID)) -> None:
    """As captions.zip and images.tgz unpack: all keys of a line that the authors' have."""
    lines = []
    for row, name in enumerate(NAMES):
        line: dict[str, Any] = {"image/key": name, "image/locale": "de"}
        for language in languages:
            of = SAID[language][row]
            if of:
                tokenized = [text.split() for text in of]
                line[language] = {
                    "caption": of,
                    "caption/tokenized": [" ".join(words) for words in tokenized],
                    "caption/tokenized/lowercase": [" ".join(words).lower() for words in tokenized],
                }
        lines.append(json.dumps(line, ensure_ascii=False))
        write(root / f"images/{name}.jpg", small.picture(row))
    write(root / "captions.jsonl", "\n".join([*lines, ""]))


def write_parquet(root: Path, languages: Sequence[str] = tuple(SAID)) -> None:
    """As floschne/xm3600: a table a language, with the images again in each; in another order in each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True, exist_ok=True)
    for number, language in enumerate(languages):
        rows = [row for row in range(len(NAMES)) if SAID[language][row]]
        rows = rows[number % 2 :] + rows[: number % 2]
        of = [SAID[language][row] for row in rows]
        table = {
            "image_id": [NAMES[row] for row in rows],
            "image_locale": ["de"] * len(rows),
            "captions": of,
            "captions_tokenized": of,
            "captions_tokenized_lowercase": [[text.lower() for text in texts] for texts in of],
            "image": [{"bytes": small.picture(row), "path": f"{NAMES[row]}.jpg"} for row in rows],
        }
        pq.write_table(pa.table(table), root / f"data/{language}-00000-of-00001-0123456789abcdef.parquet")


def write_xtd10(root: Path, folders: dict[str, str] | None = None) -> None:
    """As the repository of XTD10 lies: one caption an image; where there is none, a blank line."""
    of_language = {"de": "MIC", "en": "MIC", "ja": "STAIR"} | (folders or {})
    for language, said in SAID.items():
        lines = [of[0] if of else "" for of in said]
        folder = of_language.get(language, "XTD10")
        write(root / folder / f"test_1kcaptions_{language}.txt", "\n".join([*lines, ""]))
    write(root / "XTD10/test_image_names.txt", "\n".join([*(f"{name}.jpg" for name in NAMES), ""]))
    for row, name in enumerate(NAMES):
        write(root / f"images/{name}.jpg", small.picture(row))


def write_lines(root: Path, listing: str = "filenames.txt") -> None:
    """As data/flickr30k-200 and data/xtd200 of NLLB-CLIP's repository, with Windows' line ends."""
    for language, said in SAID.items():
        write(root / f"{language}.txt", "".join(f"{of[0] if of else ''}\r\n" for of in said))
    write(root / listing, "\n".join(f"{name}.jpg" for name in NAMES))
    for row, name in enumerate(NAMES):
        write(root / f"images/{name}.jpg", small.picture(row))


def write_urban(root: Path, texts: Sequence[str]) -> None:
    """As Urban1k.zip unpacks."""
    for number, text in enumerate(texts, 1):
        write(root / f"caption/{number}.txt", f"{text}\n")
        write(root / f"image/{number}.jpg", small.picture(number))


def write_docci(root: Path, texts: dict[str, Sequence[str]]) -> None:
    """As docci_descriptions.jsonlines and docci_images.tar.gz: split → descriptions."""
    lines = []
    for split, said in texts.items():
        for number, text in enumerate(said):
            name = f"{split}_{number:05d}"
            lines.append(
                {"example_id": name, "split": split, "image_file": f"{name}.jpg", "description": text}
            )
            write(root / f"images/{name}.jpg", small.picture(number))
    write(root / "docci_descriptions.jsonlines", "\n".join(json.dumps(line) for line in lines) + "\n")
    write(root / "docci_metadata.jsonlines", json.dumps({"example_id": "test_00000", "cluster_id": 1}) + "\n")


def write_dci(root: Path, splits: dict[str, Sequence[tuple[str, str]]]) -> None:
    """As dci.tar.gz with sa_000138.tar: split → short and extra captions."""
    folder = root / "densely_captioned_images"
    listed: dict[str, list[str]] = {}
    number = 0
    for split, said in splits.items():
        for short, extra in said:
            name = f"sa_{1545000 + number}"
            listed.setdefault(split, []).append(f"{name}.json")
            mask = {
                "idx": 0,
                "label": "sky",
                "caption": "a part",
                "outer_mask": "iVBORw0KGgo=",
                "mask_quality": 0,
            }
            entry = {
                "image": f"{name}.jpg",
                "short_caption": short,
                "extra_caption": extra,
                "mask_data": {"0": mask},
                "mask_keys": ["0"],
                "summaries": {"base": ["a summary"]},
                "negatives": {},
            }
            write(folder / f"annotations/{name}.json", json.dumps(entry))
            write(folder / f"photos/{name}.jpg", small.picture(number))
            number += 1
    write(folder / "splits.json", json.dumps(listed))
