"""Forms of the JSON files that a report reads: the entries that pages rely on, and their types."""

from __future__ import annotations

from typing import Any

from gft_edge.report.results.checks import AMOUNT, ANY, COUNT, FLAG, NUMBER, SHARE, TEXT, Maybe, Pair, Table, one_of

Form = dict[str, Any]

ANY_OBJECT = Table(ANY)

EVALUATION: Form = {
    "model": TEXT,
    "backend": TEXT,
    "data": TEXT,
    "split": TEXT,
    "images": COUNT,
    "unreadable_images": Maybe(COUNT),
    "labels": Maybe([TEXT]),
    "results": [
        {
            "budget": TEXT,
            "precision": TEXT,
            "right": COUNT,
            "top1": SHARE,
            "interval": Pair(SHARE),
            "top5": Maybe(SHARE),
            "confusion": Maybe([[COUNT]]),
            "per_class": Maybe([{"label": TEXT, "right": COUNT, "count": COUNT}]),
            "wrong": Maybe([{"image": TEXT, "truth": TEXT, "predicted": TEXT, "probability": SHARE, "picture": TEXT}]),
            "wrong_total": Maybe(COUNT),
        }
    ],
}

_WITH_INTERVAL: Form = {"top1": SHARE, "interval": Pair(SHARE)}
CONTROLS: Form = {
    "model": TEXT,
    "backend": Maybe(TEXT),
    "precision": Maybe(TEXT),
    "data": TEXT,
    "split": TEXT,
    "images": COUNT,
    "has_marks": FLAG,
    "static": {"split": TEXT, "images": COUNT},
    "full": Maybe({"budget": TEXT, "macs": COUNT, "right": COUNT, **_WITH_INTERVAL}),
    "budgets": [
        {
            "budget": TEXT,
            "macs": COUNT,
            "rules": [{"rule": TEXT, "right": [COUNT], "recall": Maybe(SHARE), **_WITH_INTERVAL}],
            "tests": [{"against": TEXT, "difference": NUMBER, "interval": Pair(NUMBER), "p": [SHARE]}],
            "gain": Maybe({"value": NUMBER, "interval": Pair(NUMBER)}),
            "lower_resolution": Maybe({"image_size": COUNT, "macs": COUNT}),
            "verdict": TEXT,
        }
    ],
}

FRONT: Form = {
    "checkpoints": [{"name": TEXT, "sha256": TEXT, "image_size": COUNT, "budget": TEXT}],
    "data": TEXT,
    "split": TEXT,
    "images": COUNT,
    "subset": COUNT,
    "cost": {"axis": one_of("ms", "gmac", "mj"), "kind": one_of("measured", "bound", "macs"), "source": TEXT},
    "limits": {"ms": Maybe(AMOUNT), "gmac": Maybe(AMOUNT), "mj": Maybe(AMOUNT)},
    "min_accuracy": Maybe(SHARE),
    "candidates": [{"budgets": COUNT, "within": COUNT}],
    "points": [
        {
            "checkpoint": COUNT,
            "precision": TEXT,
            "budget": TEXT,
            "ms": Maybe(AMOUNT),
            "gmac": Maybe(AMOUNT),
            "mj": Maybe(AMOUNT),
            "is_within": FLAG,
            "is_front": FLAG,
            "is_reference": FLAG,
            **_WITH_INTERVAL,
        }
    ],
    "recommended": Maybe({"point": COUNT, "why": TEXT, "commands": [TEXT], "free_tokens": Maybe(TEXT)}),
}

PREDICTIONS: Form = {
    "artifact": TEXT,
    "predictions": [
        {
            "image": TEXT,
            "label": TEXT,
            "probability": SHARE,
            "map": Maybe(TEXT),
            "top": Maybe([{"label": TEXT, "probability": SHARE}]),
        }
    ],
    "unreadable": Maybe([{"image": TEXT, "problem": TEXT}]),
}

_VERDICT = one_of("pass", "fail", "inconclusive")
VERIFICATION: Form = {
    "artifact": TEXT,
    "source": TEXT,
    "model_sha256": Maybe(TEXT),
    "verdict": Maybe(_VERDICT),
    "passed": FLAG,
    "images_needed": Maybe(COUNT),
    "fresh_export": Maybe(TEXT),
    "comparisons": [
        {
            "reference": TEXT,
            "candidate": TEXT,
            "images": COUNT,
            "logit_sqnr_db": Maybe(NUMBER),
            "max_relative_error": AMOUNT,
            "top1_agreement": SHARE,
            "stages": [{"jaccard": SHARE}],
        }
    ],
    "failures": Maybe([TEXT]),
    "undecided": Maybe([TEXT]),
    "places": Maybe([{"text": TEXT}]),
    "unreadable": Maybe([TEXT]),
}

_CHANGE: Form = {"mean": NUMBER, "interval": Pair(NUMBER)}
_CURVE: Form = {"curve": [SHARE], "auc": NUMBER}
MAPS: Form = {
    "source": TEXT,
    "images": COUNT,
    "fractions": [SHARE],
    "sides": [
        {
            "name": TEXT,
            "insertion": _CURVE,
            "deletion": _CURVE,
            "insertion_random": _CURVE,
            "deletion_random": _CURVE,
        }
    ],
    "gain_over_random": Table({"insertion": _CHANGE, "deletion": _CHANGE}),
    "stages": [
        {
            "stage": COUNT,
            "rank_correlation": NUMBER,
            "kept": COUNT,
            "kept_overlap": SHARE,
            "top": COUNT,
            "top_overlap": SHARE,
        }
    ],
    "pictures": [{"file": TEXT, "labels": Pair(TEXT)}],
}

RUN: Form = {
    "small": Maybe(FLAG),
    "seconds": AMOUNT,
    "steps": [{"title": TEXT, "command": TEXT, "seconds": AMOUNT}],
    "machine": {"cpu": {"model": TEXT, "cores": Maybe(COUNT)}, "system": TEXT, "nvidia_driver": Maybe(FLAG)},
    "versions": Table(Maybe(TEXT)),
}

LOG_ROW: Form = {
    "step": COUNT,
    "loss": NUMBER,
    "train_top1": Maybe(SHARE),
    "val_top1_full": Maybe(SHARE),
    "val_top1_budget": Maybe(SHARE),
}

QUANTIZATION: Form = {
    "precision": TEXT,
    "precisions": Maybe(Table(TEXT)),
    "method": TEXT,
    "calibration_images": COUNT,
    "ranges": Table(NUMBER),
    "split": Maybe(TEXT),
    "policy": [{"pattern": TEXT, "precision": TEXT, "reason": TEXT}],
}

CARD: Form = {
    "id": TEXT,
    "images": COUNT,
    "pool": COUNT,
    "split": TEXT,
    "data": TEXT,
    "choice": TEXT,
    "seed": COUNT,
    "class_counts": Table(COUNT),
    "preprocess": TEXT,
    "hashed": TEXT,
    "evaluation": Maybe({"overlap": COUNT, "compared": COUNT, "split": TEXT, "data": TEXT}),
    "unreadable": Maybe([TEXT]),
}

RANGES: Form = {
    "method": TEXT,
    "images": COUNT,
    "tensors": Table(ANY),
    "convergence": Maybe({"settled": FLAG, "images_needed": COUNT}),
}

SELECTION: Form = {
    "images": COUNT,
    "limit": SHARE,
    "verdict": TEXT,
    "stages": [
        {
            "stage": COUNT,
            "kept": COUNT,
            "margin_p50": NUMBER,
            "noise_std": NUMBER,
            "predicted_flips": NUMBER,
            "observed_flips": NUMBER,
            "jaccard": SHARE,
            "jaccard_interval": Pair(NUMBER),
            "verdict": TEXT,
        }
    ],
}

ENGINE: Form = {
    "engine_bytes": COUNT,
    "compute_capabilities": [TEXT],
    "layers": Maybe(COUNT),
    "module": TEXT,
    "version": TEXT,
}

_EFFECT: Form = {"sqnr_db": Maybe(NUMBER), "lost_points": NUMBER, "top1": SHARE, "jaccard": [SHARE]}
SENSITIVITY: Form = {
    "checkpoint": TEXT,
    "budget": TEXT,
    "ranges": {"method": TEXT, "images": COUNT},
    "evaluation": {"data": TEXT, "split": TEXT, "images": COUNT},
    "top1": SHARE,
    "everything": _EFFECT,
    "layers": [
        {"name": TEXT, "shape": TEXT, "high_ms": AMOUNT, "int8_ms": AMOUNT, "only": _EFFECT, "all_but": _EFFECT}
    ],
    "times": {"source": TEXT, "high": TEXT, "kind": Maybe(TEXT)},
    "search": Maybe(
        {
            "limit": {"text": TEXT},
            "best": Maybe(COUNT),
            "tries": [
                {
                    "int8": [TEXT],
                    "sqnr_db": Maybe(NUMBER),
                    "lost_points": NUMBER,
                    "saved_ms": NUMBER,
                    "holds": FLAG,
                    "observed": {
                        "sqnr_db": Maybe(NUMBER),
                        "lost_points": NUMBER,
                        "paired": {"interval": Pair(NUMBER)},
                    },
                }
            ],
        }
    ),
}

# Entries of bench files that pages read and gft_edge.benchmarks.measuring.bench_files does not check.
_STAGE: Form = {"p50_ms": AMOUNT}
BENCH_MACHINE: Form = {
    "board": Maybe(TEXT),
    "device": Maybe(TEXT),
    "cpu": Maybe({"model": Maybe(TEXT)}),
    "commit": Maybe(TEXT),
    "load_average": Maybe([AMOUNT]),
    "clocks": Maybe({"governors": Maybe(Table(TEXT))}),
}
BENCH_ROW: Form = {
    "budget": Maybe(TEXT),
    "mean_tokens": Maybe(AMOUNT),
    "verdict": Maybe(TEXT),
    "implausible": Maybe(TEXT),
    "lacks": Maybe(TEXT),
    "stages": Maybe(
        {name: Maybe(_STAGE) for name in ("preprocessing", "h2d", "inference", "d2h", "postprocessing", "end_to_end")}
    ),
    "throughput": Maybe({"images_per_s": Maybe(AMOUNT), "in_flight": Maybe(COUNT)}),
    "process": Maybe({"load_ms": Maybe(AMOUNT), "cold_start_ms": Maybe(AMOUNT), "peak_rss_bytes": Maybe(AMOUNT)}),
    "energy": Maybe(
        {
            "mj_per_image": Maybe(AMOUNT),
            "net_mj_per_image": Maybe(AMOUNT),
            "mj_per_correct_image": Maybe(AMOUNT),
            "refused": Maybe(TEXT),
            "accuracy": Maybe({"top1": Maybe(SHARE), "source": Maybe(TEXT)}),
        }
    ),
    "protocol": Maybe({"rounds": COUNT, "runs_per_round": COUNT, "warmup_seconds": AMOUNT}),
    "layers": Maybe(
        {
            "int8": Maybe(TEXT),
            "count": COUNT,
            "reformats": COUNT,
            "attention": TEXT,
            "fused_attention": Maybe(COUNT),
            "timed": Maybe(FLAG),
            "table": [
                {"name": TEXT, "role": TEXT, "precision": Maybe(TEXT), "share": Maybe(SHARE), "time_ms": Maybe(AMOUNT)}
            ],
        }
    ),
    "options": Maybe({"version": Maybe(TEXT), "disabled_optimizers": Maybe([TEXT])}),
}
