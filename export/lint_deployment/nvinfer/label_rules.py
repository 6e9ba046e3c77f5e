"""The labels file: its form, its length and its order."""

from __future__ import annotations

from gft_edge.export.lint_deployment.nvinfer.subject import NvinferSubject
from gft_edge.export.lint_deployment.shared.rule import Problem, Problems, rule
from gft_edge.labels import first_difference

_SOURCE = "parseLabelsFile of nvdsinfer reads one attribute per line, its labels separated by ';'"


def _attribute(subject: NvinferSubject) -> tuple[int, list[str]] | None:
    """Returns line and labels of the one attribute; None without labels, or where they stand one per line (DS011)."""
    if not subject.names_classes or not subject.labels or _one_per_line(subject):
        return None
    number, line = subject.labels[0]
    return number, line.split(";")


def _one_per_line(subject: NvinferSubject) -> bool:
    outputs = len(subject.graph.outputs) if subject.graph and subject.is_classifier else 1
    return len(subject.labels or ()) > 1 and outputs < 2


def _one_line(names: int) -> str:
    return f"all {names} labels in one line, separated by ;"


@rule("DS010", "classifier without labels", f"{_SOURCE}; without it the label of every object is empty.", "warning")
def no_labels(subject: NvinferSubject) -> Problems:
    """Yields a classifier without a labels file, or with an empty one."""
    if not subject.is_classifier:
        return
    if not subject.has("labelfile-path"):
        yield Problem(
            "labelfile-path", "is missing, so results have numbers and no labels", "labelfile-path=labels.txt"
        )
    elif subject.labels == ():
        yield Problem(
            "labelfile-path", f"{subject.label_file} is empty", _one_line(_classes(subject)), 0, subject.label_file
        )


@rule("DS011", "labels one per line", f"{_SOURCE}: class 0 gets a label, every other class none.")
def one_per_line(subject: NvinferSubject) -> Problems:
    """Yields a labels file of a classifier with several lines."""
    if subject.names_classes and subject.labels and _one_per_line(subject):
        names, line = len(subject.labels), subject.labels[1][0]
        message = f"has {names} lines; each is one attribute, so that classes from 1 on have no label"
        yield Problem("labelfile-path", message, _one_line(names), line, subject.label_file)


@rule("DS012", "number of labels", f"{_SOURCE}; a class beyond the last label has none.")
def label_count(subject: NvinferSubject) -> Problems:
    """Yields a labels file of another length than the output."""
    found, classes = _attribute(subject), _classes(subject)
    if found is not None and classes and len(found[1]) != classes:
        message = f"has {len(found[1])} labels, the graph has {classes} classes"
        yield Problem("labelfile-path", message, _one_line(classes), found[0], subject.label_file)


@rule(
    "DS013",
    "labels of another order",
    f"{_SOURCE}; the order is that of the graph's classes, which the manifest lists.",
)
def label_order(subject: NvinferSubject) -> Problems:
    """Yields the first label that the manifest names differently."""
    found = _attribute(subject)
    if found is None or subject.manifest is None or len(found[1]) != len(subject.manifest.labels):
        return
    cleaned = [_clean(name) for name in found[1]]
    if difference := first_difference(cleaned, subject.manifest.labels):
        number, here, there = difference
        message = f"class {number} is {here}, the manifest has {there}"
        yield Problem(
            "labelfile-path", message, "the labels in the order of the manifest", found[0], subject.label_file
        )


@rule("DS014", "label that holds ';'", f"{_SOURCE}, and there is no way to write a ';' inside a label.")
def separator(subject: NvinferSubject) -> Problems:
    """Yields labels of the manifest that cannot be written."""
    if not subject.is_classifier or subject.manifest is None or not subject.has("labelfile-path"):
        return
    for number, name in enumerate(subject.manifest.labels):
        if ";" in name:
            message = f"class {number} is {name!r}: nvinfer takes it for {name.count(';') + 1} classes and shifts those after it"
            yield Problem("labelfile-path", message, "a label without ;", 0, subject.label_file)


@rule(
    "DS015",
    "blanks around labels",
    f"{_SOURCE}; nothing is stripped, also no carriage return and no byte order mark.",
    "warning",
)
def blanks(subject: NvinferSubject) -> Problems:
    """Yields the first label with blanks or marks around it."""
    found = _attribute(subject)
    for name in found[1] if found else ():
        if name != _clean(name):
            message = f"label {name!r} keeps its blanks or marks"
            yield Problem("labelfile-path", message, repr(_clean(name)), found[0] if found else 0, subject.label_file)
            return


def _clean(name: str) -> str:
    return name.strip(" \t\r\ufeff\u00a0")


def _classes(subject: NvinferSubject) -> int:
    return (subject.graph.classes if subject.graph else None) or 0
