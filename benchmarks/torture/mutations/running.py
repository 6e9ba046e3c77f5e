"""Applies mutations one at a time to a copy of the tree and runs the tests that should find them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gft_edge.benchmarks.torture.mutations.catalogue import Mutation, Numbered, mutated
from gft_edge.benchmarks.torture.mutations.trees import RunResult, Tree
from gft_edge.errors import CheckFailed
from gft_edge.files import canonical_json, sha256
from gft_edge.progress import Track

Stage = Literal["named", "wider", "survived"]


@dataclass(frozen=True)
class Limits:
    """Seconds after which a run of tests counts as hanging: of the named tests, and of the wider set."""

    named: float = 600.0
    wider: float = 3600.0


@dataclass(frozen=True)
class Verdict:
    """What the tests made of a mutation.

    Attributes:
        key: of the mutation and the files that decide, see :func:`key_of`.
        stage: the tests that found it, or that it survived both sets.
        reason: id of the first test that failed, the time limit, or a signal.
        seconds: that all its test runs took.
    """

    key: str
    stage: Stage
    reason: str
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether a test found it."""
        return self.stage != "survived"


def key_of(root: Path, mutation: Mutation) -> str:
    """Returns a hash of a mutation, of the file that it changes and of the files of its tests."""
    about = {name: value for name, value in asdict(mutation).items() if name not in ("breaks", "survives", "gap")}
    files = {name: _hash_of(root / name) for name in (mutation.file, *map(_file_of, mutation.tests))}
    return hashlib.sha256(canonical_json({"mutation": about, "files": files}).encode()).hexdigest()


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def _hash_of(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def known_verdicts(data: Mapping[str, Any]) -> dict[str, Verdict]:
    """Returns the verdicts of an earlier run, by key, from its figures."""
    return {one["key"]: Verdict(**one) for one in data.get("verdicts", ())}


def require_green(tree: Tree, pending: Sequence[Numbered], limits: Limits) -> float:
    """Runs the named tests of mutations without any mutation; returns the seconds.

    Raises:
        CheckFailed: one fails, or there is no such test.
    """
    tests = list(dict.fromkeys(test for one in pending for test in one.mutation.tests))
    run = tree.run_tests(tests, limits.named * max(1, len(tests)))
    if not run.passed:
        raise CheckFailed(f"mutations: without a mutation the tests fail: {run.reason}; {run.output[-300:]}")
    return run.seconds


def verdicts(
    tree: Tree, pending: Sequence[Numbered], limits: Limits, track: Track, say: Callable[[str], None]
) -> Iterator[Verdict]:
    """Yields the verdict of each mutation, in order; the tree is as before after each.

    Args:
        tree: copy to change.
        pending: mutations.
        limits: of time.
        track: progress.
        say: takes a line for each mutation.

    Raises:
        ConfigError: the old text of a mutation does not occur once; of all of them, before the first is applied.
        CheckFailed: a test of a wider set fails without the mutation.
    """
    changed = [(one, key_of(tree.files, one.mutation), mutated(tree.files, one.mutation)) for one in pending]
    for one, key, text in track(changed, "mutations", len(pending)):
        file = tree.files / one.mutation.file
        original = file.read_bytes()
        file.write_text(text, encoding="utf-8")
        try:
            stage, run, seconds = _judged(tree, one, limits)
        finally:
            file.write_bytes(original)
        if stage == "wider":
            _require_own_failure(tree, run, limits)
        say(f"{one.number} {one.mutation.file}: {stage} {run.reason} ({seconds:.0f} s)")
        yield Verdict(key, stage, run.reason, seconds)


def _judged(tree: Tree, one: Numbered, limits: Limits) -> tuple[Stage, RunResult, float]:
    """Runs the named tests, and the wider set only if these pass."""
    named = tree.run_tests(one.mutation.tests, limits.named)
    if not named.passed:
        return "named", named, named.seconds
    wider = tree.run_tests(one.area.wider, limits.wider)
    return "survived" if wider.passed else "wider", wider, named.seconds + wider.seconds


def _require_own_failure(tree: Tree, run: RunResult, limits: Limits) -> None:
    """Refuses a failure in the wider set that has another cause than the mutation."""
    test = run.reason.partition("[")[0]  # with all its parameters, whose texts may hold anything
    if test.startswith("tests/"):
        again = tree.run_tests([test], limits.named)
        if not again.passed:
            raise CheckFailed(
                f"mutations: without a mutation a test of the wider set fails: {test}; {again.output[-300:]}"
            )
