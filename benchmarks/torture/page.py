"""The page "What is promised, and how it is tested", from the figures of a measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gft_edge.benchmarks.torture.contained import GOOD

HEAD = """# What is promised, and how it is tested

Made by `make torture`; edit `benchmarks/torture/page.py`, not this page. The same attacks run in a short form in `make test`.

## Who may hand you what

1. Assumed hostile: every file you did not make yourself, that is checkpoints, artefacts, engines, ONNX graphs, images, recipes,
   policies, calibration files, logs, bench files, and all names and texts in them.
2. Promised for each of them: it is used or refused with one line; no traceback, no endless loop, no more than 1 GB of memory for
   a small file, no code of it is run, no connection is opened, nothing outside the folder named is read or written.
3. Weights are read as tensors only (safetensors; PyTorch files with `weights_only`), arrays without pickled objects.
4. An engine is native code and cannot be checked: it is loaded only where the artefact's manifest holds its hash.
5. Damage is found: manifest, configuration and records carry a seal of their content, and every file that is used is in the
   manifest with its hash, or in the checkpoint's configuration.
6. A seal is no signature. Who can write the folder can seal it anew; keep the hash of the manifest where only you can write.
7. `verify --checkpoint` finds a graph that is not the export of its checkpoint; a checkpoint that was itself trained to
   misbehave is found by no tool here.
8. Writers work on temporary copies and rename: a kill leaves the old file, the new one, or nothing. Power loss is not tested.
9. A verb that finds no room or no permission says so in one line with exit code 2 and leaves nothing half-written.
10. Two processes that write to one artefact wait for each other, and both results are kept; of two that make the same new
    folder, the second is refused in one line.
11. Not promised: the safety of Pillow, ONNX Runtime, PyTorch and TensorRT themselves.
12. Not promised: several users of one folder with different rights, and files that change while they are read.
"""

ROWS = {
    "flips": "Damaged files",
    "kills": "Kills",
    "signals": "Ctrl-C and SIGTERM",
    "writers": "Two writers",
    "full": "No room, no permission",
    "mutants": "Hostile input",
    "soak": "Long use",
    "repeat": "Repeatability",
}


def markdown(data: Mapping[str, Any]) -> str:
    """The page.

    Args:
        data: what ``python -m gft_edge.benchmarks.torture`` measured, as plain JSON values.
    """
    parts = [HEAD, _measured(data), _summary(data)]
    makers = {
        "flips": _flips,
        "kills": _kills,
        "signals": _signals,
        "writers": _writers,
        "full": _full,
        "mutants": _mutants,
        "soak": _soak,
        "repeat": _repeat,
    }
    parts += [make(data[name]) for name, make in makers.items() if data.get(name)]
    return "\n".join(parts)


def _measured(data: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(data["versions"].items()) if version)
    return (
        f"## Measured\n\nSeed {data['seed']}, {data['seconds']:.0f} s on {data['machine']}; commit {data['commit'] or 'unknown'}.\n"
        f"{versions}.\n\nThe model is tiny (three blocks of width 32), its files are of every kind. Figures without a fault are "
        "counts of attempts, not proofs.\n"
    )


def _summary(data: Mapping[str, Any]) -> str:
    rows = []
    for name, title in ROWS.items():
        results = data.get(name) or []
        if results:
            tried = sum(result.get("tried", result.get("files", 0)) for result in results)
            rows.append((title, f"{tried:,}", f"{sum(result['failed'] for result in results):,}"))
    broken = [f"- {ROWS[name]}: not measured ({why})" for name, why in data.get("broken", {}).items()]
    more = "\n" + "\n".join(broken) + "\n" if broken else ""
    return "## Summary\n\n" + table(("attack", "tried", "failed"), rows) + more


def _flips(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in results:
        counts = one["counts"]
        other = sum(n for kind, n in counts.items() if kind not in (*GOOD, "accepted"))
        good = [counts.get(kind, 0) for kind in ("refused", "harmless", "edited")]
        rows.append((one["kind"], one["tried"], *good, counts.get("accepted", 0), other))
    text = (
        "## Damaged files\n\nOne bit (4 of 5), byte, insertion, deletion, cut or addition at a random place. "
        "Harmless: the same result, compared to the bit. Edited: a file that people edit, read as it now says.\n\n"
    )
    head = (
        "file",
        "tried",
        "refused",
        "harmless",
        "edited",
        "accepted with another result",
        "traceback, crash or hang",
    )
    return text + table(head, rows) + examples(results)


def _kills(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in results:
        standing = one["standing"]
        states = [standing.get(kind, 0) for kind in ("absent", "old", "new", "refused", "torn")]
        rows.append(
            (one["verb"], "file event" if one["how"] == "event" else "moment", one["tried"], *states, *_two(one))
        )
    text = (
        "## Kills\n\n`kill -9` at file events that change something, and at random moments. Afterwards stands nothing, what stood "
        "before, the whole result, or something that is refused; torn would be another result that is accepted. Dead end: "
        "neither the same command nor the same with `--resume` leads to the whole result. Left: a file stays after that.\n\n"
    )
    head = ("verb", "killed at a", "tried", "nothing", "old", "whole", "refused", "torn", "dead end", "left")
    return text + table(head, rows) + examples(results)


def _two(one: Mapping[str, Any]) -> tuple[int, int]:
    return one["dead_ends"], one["with_leftovers"]


def _signals(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (r["verb"], r["signal"], r["tried"], r["right_code"], r["one_line"], r["clean"], f"{r['slowest_s']:.1f} s")
        for r in results
    ]
    head = ("verb", "signal", "tried", "exit code 130 or 143", "one line", "nothing left", "slowest end")
    return "## Ctrl-C and SIGTERM\n\nAt random moments.\n\n" + table(head, rows) + examples(results)


def _writers(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [(r["pair"], r["tried"], r["both"], r["one"], r["failed"]) for r in results]
    text = (
        "## Two writers\n\nTwo commands in the same folder, the second started a random time after or before the first. "
        "What stands afterwards is compared with what both give one after the other.\n\n"
    )
    head = ("writers", "tried", "both results kept", "one refused in one line", "otherwise")
    return text + table(head, rows) + examples(results)


def _full(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [(r["verb"], r["trouble"], r["tried"], r["whole"], r["refused"], r["failed"]) for r in results if r["tried"]]
    text = (
        "## No room, no permission\n\nFull disk: a small file system in memory with 0, 4096 and random numbers of bytes free, "
        "fewer than the verb writes; afterwards the same command with room must give the whole result. Full standard output: "
        "`/dev/full`. No permission: files and folders that may not be read or written, as a user who is not root. Refused: exit "
        "code 2, one line, nothing half-written, no other file left.\n\n"
    )
    head = ("verb", "trouble", "tried", "whole", "refused in one line", "otherwise")
    notes = "".join(f"\n{r['note']}\n" for r in results if r["note"])
    return text + table(head, rows) + notes + examples(results)


def _mutants(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in results:
        counts = one["counts"]
        kinds = [
            counts.get(kind, 0) for kind in ("ok", "refused", "traceback", "hang", "crash", "memory", "reached out")
        ]
        rows.append((one["reader"], one["tried"], *kinds, f"{one['most_megabytes']:.0f} MB"))
    text = (
        "## Hostile input\n\nIntact files changed at random with some knowledge of their form; records sealed anew. "
        "At most 10 s and 1 GB for each; no connections, no shell. Finds become files of `tests/attacks`.\n\n"
    )
    head = (
        "reader",
        "tried",
        "used",
        "refused",
        "traceback",
        "hang",
        "crash",
        "memory",
        "connection or shell",
        "most memory",
    )
    finds = [find for one in results for find in one["finds"]]
    listed = [(f["file"], f["kind"], f["times"], f"`{f['detail'][:120].replace('|', '/')}`") for f in finds]
    more = "\n" + table(("find", "kind", "times", "where"), listed) if listed else ""
    return text + table(head, rows) + more


def _soak(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            r["what"],
            f"{r['tried']:,} of {r['target']:,}",
            r["wrong"],
            f"{r['grown_mb']:+.1f} MB",
            f"{r['descriptors']:+d}",
            f"{r['seconds']:.0f} s",
        )
        for r in results
    ]
    text = "## Long use\n\nOne `Classifier` on ONNX Runtime; answers compared to the bit with those of one thread.\n\n"
    return text + table(("use", "requests done", "wrong", "memory", "file descriptors", "took"), rows)


def _repeat(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [(r["command"], r["surroundings"], r["files"], ", ".join(r["differing"]) or "none") for r in results]
    text = (
        "## Repeatability\n\nThe same checkpoint and flags; every file against that of one thread and hash seed 0.\n\n"
    )
    return text + table(("command", "surroundings", "files", "differing"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def examples(results: Sequence[Mapping[str, Any]]) -> str:
    """What went wrong, a few of each kind."""
    lines = [
        f"- {one.get('kind') or one.get('verb') or one.get('pair')}: `{' '.join(text.replace('`', ' ').split())[:300]}`"
        for one in results
        for text in one.get("examples", ())[:3]
    ]
    return "\n" + "\n".join(lines) + "\n" if lines else ""
