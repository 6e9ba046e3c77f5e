"""Renders the page with the promises and their test results, from the figures of a measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gft_edge.benchmarks.torture.contained import GOOD

HEAD = """# Promises and their tests

`make torture` writes this page: edit `benchmarks/torture/page.py`, not the page. `make test` runs a short form of these attacks.

## Threat model and promises

1. Assumed hostile: every file that you did not make yourself (checkpoints, artefacts, engines, ONNX graphs, images, recipes,
   policies, calibration files, logs, bench files), and all names and texts in these files.
2. Promised for each of them: the toolkit uses the file or refuses it with a one-line message. There is no traceback and no
   endless loop; a small file takes at most 1 GB of memory; no code in the file runs; no connection is opened; nothing outside
   the given folder is read or written.
3. Weights are read as tensors only (safetensors; PyTorch files with `weights_only`), arrays without pickled objects.
4. An engine is native code and cannot be checked. It is loaded only if the artefact's manifest contains its hash.
5. Damage is detected: the manifest, the configuration and the records carry a seal of their content; the manifest or the
   checkpoint's configuration contains the hash of every file that is used.
6. A seal is not a signature. Anyone who can write to the folder can seal its content again; keep the hash of the manifest where
   only you can write.
7. `verify --checkpoint` detects a graph that is not the export of its checkpoint. No tool here detects a checkpoint that was
   trained to misbehave.
8. Verbs write temporary copies and rename them: a kill leaves the old file, the new file or no file. Power loss is not tested.
9. A verb without disk space or permission prints a one-line message, exits with code 2 and leaves no partial file.
10. Two processes that write to one artefact wait for each other, and both results are kept. If two processes make the same new
    folder, the second is refused with a one-line message.
11. Not promised: the safety of Pillow, ONNX Runtime, PyTorch and TensorRT themselves.
12. Not promised: several users of one folder with different rights, and files that change while they are read.
"""

ROWS = {
    "flips": "Damaged files",
    "kills": "Kills",
    "signals": "Ctrl-C and SIGTERM",
    "writers": "Two writers",
    "full": "No disk space, no permission",
    "mutants": "Hostile input",
    "soak": "Long use",
    "repeat": "Repeatability",
}


def markdown(data: Mapping[str, Any]) -> str:
    """Returns the page as Markdown.

    Args:
        data: figures of ``python -m gft_edge.benchmarks.torture``, as plain JSON values.
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
        f"{versions}.\n\nThe model is tiny (three blocks of width 32) and has files of every kind. Zero failures "
        "are a result of these attempts, not a proof.\n"
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
        "## Damaged files\n\nEach attempt changes one bit (4 of 5 attempts) or byte, or inserts, deletes, truncates "
        "or appends bytes at a random place. Harmless: the result is bit-identical. Edited: people edit this kind of file, and "
        "the toolkit reads its new content.\n\n"
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
            (
                one["verb"],
                "file event" if one["how"] == "event" else "random time",
                one["tried"],
                *states,
                *_failures(one),
            )
        )
    text = (
        "## Kills\n\n`kill -9` ends verbs at events that change files, and at random times. Then there is no result, the old "
        "result, the complete new result, or a result that the toolkit refuses. Torn: it accepts a different result. Dead end: "
        "neither the same command nor the command with `--resume` gives the complete result. Leftovers: a file remains after "
        "that.\n\n"
    )
    head = ("verb", "kill at", "tried", "no result", "old", "complete", "refused", "torn", "dead end", "leftovers")
    return text + table(head, rows) + examples(results)


def _failures(one: Mapping[str, Any]) -> tuple[int, int]:
    return one["dead_ends"], one["with_leftovers"]


def _signals(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            *(r[name] for name in ("verb", "signal", "tried", "right_code", "one_line", "clean")),
            f"{r['slowest_s']:.1f} s",
            r["finished"],
        )
        for r in results
    ]
    head = (
        "verb",
        "signal",
        "tried",
        "exit code 130 or 143",
        "one-line message",
        "no leftovers",
        "slowest end",
        "too late",
    )
    text = (
        "## Ctrl-C and SIGTERM\n\nThe signals arrive at random times. Too late: the work was complete when the signal came; "
        "exit code 0, the complete result, no leftovers.\n\n"
    )
    return text + table(head, rows) + examples(results)


def _writers(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [(r["pair"], r["tried"], r["both"], r["one"], r["failed"]) for r in results]
    text = (
        "## Two writers\n\nTwo commands run in the same folder; the second starts at a random time after or before the "
        "first. The result is compared with that of sequential runs.\n\n"
    )
    head = ("writers", "tried", "both results kept", "one refused with one line", "failed")
    return text + table(head, rows) + examples(results)


def _full(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [(r["verb"], r["trouble"], r["tried"], r["whole"], r["refused"], r["failed"]) for r in results if r["tried"]]
    text = (
        "## No disk space, no permission\n\nFull disk: a small file system in memory has 0, 4096 or a random number of bytes free, "
        "less than the verb writes; the same command with enough space must then give the complete result. Full standard output: "
        "`/dev/full`. No permission: a user who is not root lacks access to files and folders. Refused: exit code 2, a one-line "
        "message, no partial file and no leftovers.\n\n"
    )
    head = ("verb", "fault", "tried", "complete", "refused with one line", "failed")
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
        "## Hostile input\n\nRandom changes mutate intact files according to their format and seal records again. Limits for "
        "each input: 10 s, 1 GB, no connection, no shell. Finds become files in `tests/attacks`.\n\n"
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
        "peak memory",
    )
    finds = [find for one in results for find in one["finds"]]
    listed = [(f["file"], f["kind"], f["times"], f"`{f['detail'][:120].replace('|', '/')}`") for f in finds]
    more = "\n" + table(("find", "kind", "times", "error"), listed) if listed else ""
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
    text = "## Long use\n\nTests one `Classifier` on ONNX Runtime; correct answers are bit-identical to those of one thread.\n\n"
    return text + table(("use", "requests done", "wrong", "memory", "file descriptors", "time"), rows)


def _repeat(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [(r["command"], r["surroundings"], r["files"], ", ".join(r["differing"]) or "none") for r in results]
    text = (
        "## Repeatability\n\nThe same commands run in different environments; every file is compared with that of one thread "
        "and hash seed 0.\n\n"
    )
    return text + table(("command", "environment", "files", "different files"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def examples(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown list with a few failures of each kind."""
    lines = [
        f"- {one.get('kind') or one.get('verb') or one.get('pair')}: `{' '.join(text.replace('`', ' ').split())[:300]}`"
        for one in results
        for text in one.get("examples", ())[:3]
    ]
    return "\n" + "\n".join(lines) + "\n" if lines else ""
