"""Figures of bench files: latency, throughput, stages, energy, layers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gft_edge.report.figures.svg import COLORS, INK, PALE, is_narrow, point_tip, responsive, short, tip
from gft_edge.report.results.records import UNSTABLE, is_unstable

MOST_DOTS = 400
"""Largest number of requests drawn per row; more of them only enlarge the page."""


def distributions(rows: Sequence[Mapping[str, Any]], colors: Sequence[str]) -> str:
    """Draws every request as a dot, with p50, p90 and p99; rows have a ``label`` and may have no raw samples."""

    def draw(_: Figure, axes: Axes) -> None:
        rng = np.random.default_rng(0)
        limit = max(row.get("p99_ms") or row["p50_ms"] for row in rows) * 1.15
        for place, (row, color) in enumerate(zip(rows, colors)):
            samples = np.concatenate([np.asarray(r, dtype=float) for r in row["rounds_ms"]] or [np.empty(0)])
            shown = samples[samples <= limit]
            shown = shown[:: 1 + len(shown) // MOST_DOTS]
            height = place + rng.uniform(-0.22, 0.22, len(shown))
            axes.plot(shown, height, ".", color=color, alpha=0.35, ms=4, mew=0)
            for key, half in (("p50_ms", 0.34), ("p90_ms", 0.26), ("p99_ms", 0.18)):
                if row.get(key) is not None:
                    (line,) = axes.plot([row[key]] * 2, [place - half, place + half], color=INK, lw=1.6)
                    tip(line, f"{_flat(row)}\n{key.removesuffix('_ms')} {row[key]:.3f} ms")
            text = f"{row['p50_ms']:.2f} ms" + (f" {UNSTABLE}" if is_unstable(row) else "")
            axes.annotate(text, (row["p50_ms"], place - 0.36), ha="center", va="bottom", fontsize=9)
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
        axes.set(xlabel="ms per request (lines: p50, p90, p99)", ylim=(len(rows) - 0.5, -0.75), xlim=(0, limit))

    told = "; ".join(f"{_flat(row)} {row['p50_ms']:.2f} ms" for row in rows)
    return responsive(draw, 0.9 + 0.7 * len(rows), f"latency, median: {told}")


def over(curves: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str) -> str | None:
    """Draws one line per curve, on axes from zero; returns None without a curve."""
    if not curves:
        return None

    def draw(_: Figure, axes: Axes) -> None:
        for (name, curve), color in zip(curves.items(), itertools.cycle(COLORS)):
            axes.plot(*zip(*curve), "o-", color=color, label=name)
            for x, y in curve:
                point_tip(axes, x, y, f"{name}\n{x:g} {xlabel}: {y:.4g} {ylabel}")
        points = sorted({x for curve in curves.values() for x, _ in curve})
        highest = max(y for curve in curves.values() for _, y in curve)
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.08 * highest), xlim=(0, 1.04 * points[-1]), xticks=points)
        axes.xaxis.set_major_formatter("{x:g}")
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)

    return responsive(draw, 3.4, f"{ylabel}, against {xlabel}")


def speedups(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws the speed-up of each row over its baseline, with its 95 % interval."""

    def draw(_: Figure, axes: Axes) -> None:
        for place, row in enumerate(rows):
            middle, (low, high) = row["speedup"], row["speedup_interval"]
            errors = [[max(middle - low, 0)], [max(high - middle, 0)]]
            axes.errorbar(middle, place, xerr=errors, fmt="o", color=COLORS[1], capsize=4, ms=7)
            text = f"{middle:.2f}x" + (f" {UNSTABLE}" if row.get("is_unstable_ratio") else "")
            axes.annotate(text, (middle, place), (0, 8), textcoords="offset points", ha="center")
            point_tip(
                axes, middle, place, f"{_flat(row)}\n{middle:.3f}x ({low:.3f} to {high:.3f}) over {row['baseline']}"
            )
        axes.axvline(1, color=COLORS[0], lw=1)
        axes.set_yticks(range(len(rows)), [_label(row, f", over {row['baseline']}") for row in rows], fontsize=8)
        axes.set(xlabel="times as fast (bar: 95 % interval)", ylim=(len(rows) - 0.5, -0.7))
        axes.set_xlim(0, max(row["speedup_interval"][1] for row in rows) * 1.12)

    told = "; ".join(f"{_flat(row)} {row['speedup']:.2f}x" for row in rows)
    return responsive(draw, 0.9 + 0.6 * len(rows), f"speed-ups: {told}")


def stages(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws the medians of the stages of a request, one bar per row."""
    names = ("preprocessing", "h2d", "inference", "d2h", "postprocessing")

    def draw(_: Figure, axes: Axes) -> None:
        for name, color in zip(names, COLORS):
            widths = [(row["stages"].get(name) or {}).get("p50_ms", 0) for row in rows]
            lefts = [
                sum((row["stages"].get(before) or {}).get("p50_ms", 0) for before in names[: names.index(name)])
                for row in rows
            ]
            if any(widths):
                bars = axes.barh(range(len(rows)), widths, 0.6, left=lefts, color=color, label=name)
                for bar, row, width in zip(bars, rows, widths):
                    tip(bar, f"{_flat(row)}\n{name} {width:.3f} ms")
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
        axes.set(xlabel="ms", ylim=(len(rows) - 0.4, -0.6))
        axes.grid(False, axis="y")
        axes.legend(frameon=False, ncols=2, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))

    return responsive(draw, 1.3 + 0.45 * len(rows), "medians of the stages of a request")


def energy(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws millijoules per image, and the same without idle power where that was measured."""

    def draw(_: Figure, axes: Axes) -> None:
        for place, row in enumerate(rows):
            whole, net = row["energy"]["mj_per_image"], row["energy"].get("net_mj_per_image")
            tip(axes.barh(place - 0.17, whole, 0.32, color=COLORS[2])[0], f"{_flat(row)}\n{whole:.4g} mJ per image")
            axes.annotate(f"{whole:.3g}", (whole, place - 0.17), (4, 0), textcoords="offset points", va="center")
            if net is not None:
                (bar,) = axes.barh(place + 0.17, net, 0.32, color=COLORS[2], alpha=0.4)
                tip(bar, f"{_flat(row)}\n{net:.4g} mJ per image without idle power")
                axes.annotate(f"{net:.3g}", (net, place + 0.17), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
        axes.set(xlabel="mJ per image", ylim=(len(rows) - 0.4, -0.6))
        axes.grid(False, axis="y")

    return responsive(draw, 0.9 + 0.6 * len(rows), "energy per image")


ROLES = ("gemm", "convolution", "attention", "softmax", "reformat", "region", "other")


def layers(summary: Mapping[str, Any], most: int = 16) -> str | None:
    """Draws the slowest layers by role; returns None without times."""
    timed = [layer for layer in summary["table"] if layer["share"] is not None]
    if not timed:
        return None
    shown = sorted(timed, key=lambda layer: -layer["share"])[:most]
    colors = dict(zip(ROLES, (*COLORS[1:], COLORS[0], PALE)))

    def draw(figure: Figure, axes: Axes) -> None:
        for role in dict.fromkeys(layer["role"] for layer in shown):
            places = [place for place, layer in enumerate(shown) if layer["role"] == role]
            shares = [100 * shown[place]["share"] for place in places]
            bars = axes.barh(places, shares, 0.7, color=colors.get(role, PALE), label=role)
            for bar, place, share in zip(bars, places, shares):
                tip(bar, f"{shown[place]['name']}\n{role}, {share:.2f} % of the time")
        for place, layer in enumerate(shown):
            time = "" if layer["time_ms"] is None else f", {layer['time_ms']:.3g} ms"
            text = f"{layer['precision'] or ''}{time}"
            axes.annotate(
                text, (100 * layer["share"], place), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        names = [short(layer["name"], 20 if is_narrow(figure) else 44) for layer in shown]
        axes.set_yticks(range(len(shown)), names, fontsize=8)
        axes.set(xlabel="per cent of the layers' time", ylim=(len(shown) - 0.4, -0.6))
        axes.set_xlim(0, max(100 * shown[0]["share"] * 1.5, 1e-3))
        axes.grid(False, axis="y")
        axes.legend(frameon=False, fontsize=8, loc="lower right")

    return responsive(draw, 0.9 + 0.3 * len(shown), "the slowest layers by their share of the time")


def _flat(row: Mapping[str, Any]) -> str:
    """Returns the whole label of a row on one line."""
    return ", ".join(str(row["label"]).splitlines())


def _label(row: Mapping[str, Any], more: str = "") -> str:
    """Returns the label of a row with its lines shortened."""
    return "\n".join(short(line, 30) for line in f"{row['label']}{more}".splitlines()[:3])
