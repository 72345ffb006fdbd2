"""What a reader of a record's numbers must know, a line each: for the table of one record."""

from __future__ import annotations

from typing import Any, Final

from clipbench.data.split import Note
from clipbench.records.record import Noted, Record
from clipbench.report import dataframe, numbers

#: how much more than by chance a guesser by frequency must score to be named
_FREQUENT: Final = 0.005


def remarks(record: Record) -> list[str]:
    """What a reader of the numbers must know: what the model has seen, notes on the data, how a probe was chosen."""
    evidence: Any = record.evidence
    said = [f"trained on {one.text}" for one in record.seen]
    said += [_noted(note) for note in record.notes]
    texts: Any = record.encoder.get("texts", {})
    if record.protocol.name == "ret" and any(of["cut"] == "not stated" for of in texts.values()):
        said.append("the model does not say how long a text may be: whether it cuts some is not known")
    if same := evidence.get("same_prompts"):
        named = "; ".join(" = ".join(group) for group in same[:3]) + ("; …" if len(same) > 3 else "")
        count = f"{sum(map(len, same)):,} classes have the same prompts as another"
        said.append(f"{count}, so no model tells them apart: {named}")
    frequency, acc1 = evidence.get("chance_by_frequency"), record.scores.get("acc1")
    if frequency is not None and acc1 and frequency - (acc1.chance or 0.0) > _FREQUENT:
        said.append(f"who guesses by the frequency of the classes has acc1 {100 * frequency:.2f}")
    if centre := dataframe.centre_baseline(record):
        said.append(_beside_centre(*centre))
    if "lambda" in evidence.get("chosen", {}):
        chosen, validation = evidence["chosen"], evidence["validation"]
        said.append(
            f"λ = {chosen['lambda']:.4g} (C = {chosen['C']:.4g}), the best of {len(evidence['curve'])} by "
            f"{validation['metric']} on {validation['n']:,} validation samples ({validation['source']})"
        )
        if chosen["edge"]:
            said.append(f"careful: {chosen['edge']}")
    if "std" in evidence:
        spread = evidence["std"][record.primary]
        draws = len(evidence["per_draw"][record.primary])
        said.append(f"mean of {draws} draws" + (f", standard deviation {100 * spread:.2f}" if spread else ""))
    if groups := evidence.get("groups"):
        said += _of_groups(groups, evidence.get("grouped", {}))
    if languages := evidence.get("languages"):
        said += _of_languages(languages, record.primary)
    if fits := evidence.get("not_converged"):
        said.append(f"not converged: {'; '.join(map(_fit, fits))}")
    return said


def _of_groups(groups: list[dict[str, Any]], grouped: dict[str, Any]) -> list[str]:
    """What is told of groups of samples, and which of them do not count.

    >>> lone = {"metric": "acc1", "column": "region", "without_samples": [], "skipped": []}
    >>> _of_groups([{"group": "Asia", "acc1": 0.25, "n": 8}], lone)
    ['acc1 of 1 group by region: Asia 25.00 (n 8)']
    """
    metric = grouped.get("metric", "acc1")

    def told(of: list[dict[str, Any]], most: int) -> str:
        named = "; ".join(f"{one['group']} {100 * one[metric]:.2f} (n {one['n']:,})" for one in of[:most])
        return named + ("; …" if len(of) > most else "")

    column = f" by {grouped['column']}" if grouped else ""
    count = f"{len(groups):,} groups" if len(groups) > 1 else "1 group"
    worst = ", the worst first" if len(groups) > 1 else ""
    said = [f"{metric} of {count}{column}{worst}: {told(groups, 3)}"]
    if skipped := grouped.get("skipped"):
        said.append(f"never the worst, since the task skips them: {told(skipped, 3)}")
    if empty := grouped.get("without_samples"):
        named = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        said.append(f"{len(empty):,} of the groups known have no sample, and do not count: {named}")
    return said


def _of_languages(languages: dict[str, Any], metric: str) -> list[str]:
    """In which languages a score is highest and lowest, and which lack captions of some images.

    >>> one = {"images_without_captions": 0}
    >>> _of_languages({"de": one | {"m": 0.5}, "mi": {"m": 0.25, "images_without_captions": 2}}, "m")
    ['m by language: de 50.00; mi 25.00', 'images without a caption in a language do not count there: mi 2']
    """
    best = sorted(
        (name for name in languages if metric in languages[name]), key=lambda name: -languages[name][metric]
    )
    told = [f"{name} {100 * languages[name][metric]:.2f}" for name in best]
    if len(told) > 8:
        told = [*told[:4], "…", *told[-4:]]
    said = [f"{metric} by language: {'; '.join(told)}"]
    lacking = {
        name: of["images_without_captions"] for name, of in languages.items() if of["images_without_captions"]
    }
    if lacking:
        named = "; ".join(f"{name} {count:,}" for name, count in list(lacking.items())[:6])
        more = "; …" if len(lacking) > 6 else ""
        said.append(f"images without a caption in a language do not count there: {named}{more}")
    return said


def _beside_centre(value: float, above: float, ci95: tuple[float, float] | None) -> str:
    """What no model is: the baseline of grounding, and the pointing game beside it.

    >>> _beside_centre(0.25, 0.125, (-0.01, 0.26))
    "always pointing at the image's middle gets 25.00; the pointing game is +12.50 from that (95 % -1.00 … +26.00)"
    """
    interval = f"95 % {numbers.ends(*ci95, None, '+')}" if ci95 else "no interval: images do not differ"
    return (
        f"always pointing at the image's middle gets {numbers.number(value, None)}; the pointing game is "
        f"{numbers.number(above, None, '+')} from that ({interval})"
    )


def _noted(note: Noted) -> str:
    """A note on the data as a line.

    >>> _noted(Noted(split="test", kind="ignored-files", text="files ignored", count=2, examples=("a.txt", "b.md")))
    'test: 2 files ignored (a.txt, b.md)'
    """
    return f"{note.split}: {Note(note.kind, note.text, note.count, note.examples)}"


def _fit(which: Any) -> str:
    """A fit that did not converge: a probe's λ, or an SVM's class, cost and fold."""
    if not isinstance(which, dict):
        return f"λ = {which:.3g}"
    fold = "all folds" if which["fold"] is None else f"fold {which['fold']}"
    return f"{which['class']} at C = {which['C']:g}, {fold}"
