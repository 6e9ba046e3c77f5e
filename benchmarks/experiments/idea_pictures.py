"""Pictures of docs/idea.md, computed from a checkpoint on one scene of the test split.

python -m gft_edge.benchmarks.experiments.idea_pictures docs

The model runs in float64, so that the same checkpoint gives the same files on every machine. The pictures have their own light
background, which dark pages show as it is.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from gft_edge.checkpoint import load_checkpoint
from gft_edge.config.model import GFTConfig
from gft_edge.data.scenes import Box, Scenes
from gft_edge.errors import CheckFailed, exit_code
from gft_edge.files import replacing, require_writable_folder
from gft_edge.model.focal_block import FocalBlock
from gft_edge.model.gft import FocalGFT, GFTOutput
from gft_edge.model.scores import SCORES

PICTURES = ("idea-block.svg", "idea-scene.svg", "idea-shift.svg")
SCENE = 8
SEED = 0
"""Of the vector that is added to every key."""
LENGTH = 3
"""Of that vector, in mean lengths of a key."""
SAME_ATTENTION = 1e-12
"""Largest change of an attention weight in float64 that counts as none."""

SIDE, GAP, EDGE, TITLE, NOTE = 192, 16, 16, 24, 40
PAPER, INK, SOFT, LINE = "#f8fafc", "#1f2937", "#4b5563", "#94a3b8"
ALL, KEPT, MARK = "#dbeafe", "#fed7aa", "#dc2626"
LEVELS = 24
INFERNO = ((0, 0, 4), (51, 10, 94), (115, 27, 109), (176, 47, 91), (229, 92, 48), (252, 166, 10), (252, 255, 164))
"""Seven stops of matplotlib's "inferno" (public domain), dark to bright."""

Kept = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Shift:
    """What one vector added to every key of the first selecting block changes.

    Attributes:
        attention: largest change of an attention weight.
        columns, rows: patches kept by column and by row means, before and after, (N,) bool each.
    """

    attention: float
    columns: tuple[Kept, Kept]
    rows: tuple[Kept, Kept]


@dataclass(frozen=True)
class Found:
    """What the pictures show of one scene.

    Attributes:
        config: of the model.
        image: input of the network, (H, W, 3) uint8.
        box: of the mark, in pixels.
        label: the right class.
        answers: class and probability with every patch, and with the checkpoint's own budget.
        scores: of the first selecting block, (N,).
        kept: patches of the whole image that each stage keeps, (N,) bool.
        shift: of the first selecting block.
    """

    config: GFTConfig
    image: npt.NDArray[np.uint8]
    box: Box
    label: str
    answers: tuple[tuple[str, float], tuple[str, float]]
    scores: npt.NDArray[np.float64]
    kept: tuple[Kept, ...]
    shift: Shift


@torch.no_grad()
def find(name: str = "builtin", scene: int = SCENE) -> Found:
    """Runs a focal checkpoint on one scene.

    Raises:
        CheckFailed: attention depends on what is added to every key.
    """
    checkpoint = load_checkpoint(name)
    info, model = checkpoint.info, checkpoint.model.double()
    assert isinstance(model, FocalGFT)
    spec = info.preprocess
    scenes = Scenes("test", scene + 1, size=spec.height)
    image, number = scenes[scene]
    pixels = torch.from_numpy(spec.normalize(image)[None]).double()
    whole = model(pixels, info.model.full_budget)
    pruned = model(pixels, maps=True)
    assert isinstance(whole, Tensor)
    assert isinstance(pruned, GFTOutput)
    kept = tuple(_mask(stage.kept[0], info.model.num_patches) for stage in pruned.stages)
    return Found(
        info.model,
        image,
        scenes.mark_box(scene),
        scenes.labels[number],
        (_answer(whole, info.labels), _answer(pruned.logits, info.labels)),
        pruned.stages[0].scores[0].numpy(),
        kept,
        shifted(model, pixels),
    )


@torch.no_grad()
def shifted(model: FocalGFT, pixels: Tensor) -> Shift:
    """Returns what a random vector of LENGTH keys, added to every key of the first selecting block, changes.

    Args:
        model: in float64.
        pixels: one image, (1, 3, H, W) float64.

    Raises:
        CheckFailed: the attention changes.
    """
    config = model.config
    first, count, prefix = config.stages[0], config.budget.keep[0], config.num_prefix_tokens
    x = model.embed(pixels)
    for before in model.blocks[: first - 1]:
        x = before(x)
    block = model.blocks[first - 1]
    assert isinstance(block, FocalBlock)
    q, k, _ = block.attn.project(block.norm1(x))
    b = torch.randn(k.shape[2], dtype=k.dtype, generator=torch.Generator().manual_seed(SEED))
    moved = k + b * (LENGTH * k.norm(dim=2).mean() / b.norm())
    change = float((_attention(q, k, config.num_heads) - _attention(q, moved, config.num_heads)).abs().max())
    if not change < SAME_ATTENTION:
        raise CheckFailed(f"attention changed by {change:.1e}, expected less than {SAME_ATTENTION:.0e}")
    column = SCORES["column-mean"]
    columns = [column(q, keys, config.num_heads, prefix)[0] for keys in (k, moved)]
    rows = [(q[0, prefix:] @ keys[0, prefix:].mean(dim=0)) for keys in (k, moved)]
    (c0, c1), (r0, r1) = ([_mask(s.topk(count).indices, len(s)) for s in pair] for pair in (columns, rows))
    return Shift(change, (c0, c1), (r0, r1))


def jaccard(one: Kept, other: Kept) -> float:
    """Returns the size of the intersection over that of the union."""
    return float((one & other).sum() / (one | other).sum())


def _attention(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Returns the attention weights (B, H, T, T)."""
    q, k = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k))
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=3)


def _mask(indices: Tensor, count: int) -> Kept:
    mask = np.zeros(count, dtype=np.bool_)
    mask[indices.numpy()] = True
    return mask


def _answer(logits: Tensor, labels: Sequence[str]) -> tuple[str, float]:
    shares = logits[0].softmax(dim=0)
    return labels[int(shares.argmax())], float(shares.max())


def scene_picture(found: Found) -> str:
    """Returns the image, the score of each patch, and the kept patches of every stage that drops some, as SVG."""
    stages = [
        (number, mask)
        for number, mask in enumerate(found.kept)
        if mask.sum() < (found.kept[number - 1].sum() if number else mask.size)
    ]
    panels = [_panel(0, "the image", _scene() + _mark(found.box), f"the letter to name: {found.label}")]
    panels.append(_panel(1, f"score in block {found.config.stages[0]}", _heat(found), "mean score received"))
    for place, (number, mask) in enumerate(stages, start=2):
        count = f"{int(mask.sum())} of {mask.size} patches"
        panels.append(_panel(place, f"kept by block {found.config.stages[number]}", _dropped(found, mask), count))
    (whole, sure), (pruned, pruned_sure) = found.answers
    line = f"answer with every patch: {whole}, {sure:.1%}; with budget {found.config.budget.id}: {pruned}, {pruned_sure:.1%}"
    alt = "a scene, the score of each of its patches, and the patches that stay after each selecting block"
    return _sheet(len(panels), alt, found.image, panels, line)


def shift_picture(found: Found) -> str:
    """Returns the patches kept by column and by row means, before and after one vector was added to every key, as SVG."""
    shift, count = found.shift, found.config.budget.keep[0]
    panels = []
    for name, place, (before, after) in (("columns", 0, shift.columns), ("rows", 2, shift.rows)):
        panels.append(_panel(place, f"{name}, as trained", _dropped(found, before), f"{count} patches kept"))
        same = f"Jaccard {jaccard(before, after):.2f} with the left"
        panels.append(_panel(place + 1, f"{name}, keys + b", _dropped(found, after), same))
    line = f"no attention weight changes by more than {SAME_ATTENTION:.0e}"
    alt = "patches kept by column means and by row means, before and after one vector is added to every key"
    return _sheet(4, alt, found.image, panels, line)


def _sheet(columns: int, alt: str, image: npt.NDArray[np.uint8], panels: Sequence[str], line: str) -> str:
    """Returns panels side by side with a line below them; the image is stored once."""
    width = 2 * EDGE + columns * SIDE + (columns - 1) * GAP
    height = EDGE + TITLE + SIDE + NOTE + 22
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    picture = f'<image id="scene" width="{SIDE}" height="{SIDE}" href="data:image/png;base64,{data}"/>'
    last = _text(EDGE, height - EDGE, line, color=SOFT)
    return _svg(width, height, alt, f"<defs>{picture}</defs>", *panels, last)


def _panel(place: int, title: str, content: str, note: str) -> str:
    left, top = EDGE + place * (SIDE + GAP), EDGE + TITLE
    words = _text(0, -9, title, weight="bold") + _text(0, SIDE + 18, note, color=SOFT)
    return f'<g transform="translate({left} {top})">{words}{content}</g>'


def _scene() -> str:
    return '<use href="#scene"/>'


def _mark(box: Box) -> str:
    left, top, right, bottom = box
    place = f'x="{left - 3}" y="{top - 3}" width="{right - left + 6}" height="{bottom - top + 6}"'
    return f'<rect {place} fill="none" stroke="{MARK}" stroke-width="2"/>'


def _dropped(found: Found, kept: Kept) -> str:
    """Returns the image with the dropped patches faded."""
    faded = f'<path d="{_cells(found.config, ~kept)}" fill="{PAPER}" fill-opacity="0.86"/>'
    return _scene() + faded + _mark(found.box)


def _heat(found: Found) -> str:
    """Returns the rank of each patch's score as a colour: the ranking is all that the model uses of it."""
    ranks = found.scores.argsort(kind="stable").argsort(kind="stable")
    levels = ranks * LEVELS // len(ranks)
    paths = (
        f'<path d="{_cells(found.config, levels == n)}" fill="{_color(n / (LEVELS - 1))}"/>' for n in range(LEVELS)
    )
    return "".join(paths) + _mark(found.box)


def _cells(config: GFTConfig, chosen: Kept) -> str:
    """Returns the squares of the chosen patches as one path."""
    rows, columns = config.grid
    side = SIDE / rows
    return "".join(
        f"M{n % columns * side:g} {n // columns * side:g}h{side:g}v{side:g}h-{side:g}z" for n in np.flatnonzero(chosen)
    )


def _color(share: float) -> str:
    place = share * (len(INFERNO) - 1)
    low = min(int(place), len(INFERNO) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(INFERNO[low], INFERNO[low + 1]))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def block_picture(config: GFTConfig) -> str:
    """Returns a diagram of the first selecting block, with its numbers of tokens, as SVG."""
    prefix, patches, keep = config.num_prefix_tokens, config.num_patches, config.budget.keep[0]
    tokens, rows = patches + prefix, keep + prefix
    boxes = (
        _box(16, 150, 88, "tokens", f"{tokens} rows", fill=ALL),
        _box(132, 150, 88, "LayerNorm", f"{tokens} rows", fill=ALL),
        _box(248, 150, 88, "q, k, v", f"{tokens} rows", fill=ALL, int8=True),
        _box(364, 270, 128, "score of patch j", "(mean of q) . k_j", fill=ALL),
        _box(520, 270, 104, "TopK", f"{keep} of {patches}", fill=KEPT),
        _box(356, 150, 164, "attention", f"q {rows} rows, k v {tokens}", fill=KEPT),
        _box(596, 150, 72, "proj", f"{rows} rows", fill=KEPT, int8=True),
        _box(500, 30, 144, "rows that stay", f"{rows} of {tokens}", fill=KEPT),
        _box(756, 150, 124, "LayerNorm, MLP", f"{rows} rows", fill=KEPT, int8=True),
        _box(956, 150, 88, "tokens", f"{rows} rows", fill=KEPT),
    )
    lines = (
        "M104 178H130", "M220 178H246", "M336 178H354", "M292 206V298H362", "M492 298H518", "M520 178H594",
        "M668 178H700", "M728 178H754", "M880 178H902", "M930 178H954",
        "M60 150V58H498", "M644 58H714V162", "M738 178V100H916V162",
    )  # fmt: skip
    arrows = "".join(f'<path d="{line}" fill="none" stroke="{SOFT}" marker-end="url(#tip)"/>' for line in lines)
    chosen = f'<path d="M572 270V88" fill="none" stroke="{MARK}" stroke-dasharray="5 3" marker-end="url(#tip)"/>'
    chosen += f'<path d="M572 240H438V208" fill="none" stroke="{MARK}" stroke-dasharray="5 3" marker-end="url(#tip)"/>'
    sums = "".join(
        f'<circle cx="{x}" cy="178" r="14" fill="{KEPT}" stroke="{INK}"/>{_text(x, 183, "+", anchor="middle")}'
        for x in (714, 916)
    )
    legend = (
        _key(16, ALL, False, "every token") + _key(160, KEPT, False, "kept rows alone")
        + _key(330, PAPER, True, "products with weights: INT8 when quantized; all else stays in floating point")
    )  # fmt: skip
    legend += f'<path d="M860 369H892" stroke="{MARK}" stroke-dasharray="5 3"/>' + _text(902, 374, "indices that stay")
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>'
    )
    alt = f"a selecting block: {tokens} tokens enter, queries and keys score the patches, {rows} rows leave"
    return _svg(1060, 400, alt, tip, arrows, chosen, *boxes, sums, legend)


def _box(left: int, top: int, width: int, title: str, note: str, fill: str, int8: bool = False) -> str:
    frame = f'rx="5" fill="{fill}" stroke="{INK}" stroke-width="{3 if int8 else 1}"'
    middle = left + width // 2
    words = _text(middle, top + 24, title, anchor="middle") + _text(middle, top + 43, note, color=SOFT, anchor="middle")
    return f'<rect x="{left}" y="{top}" width="{width}" height="56" {frame}/>{words}'


def _key(left: int, fill: str, int8: bool, words: str) -> str:
    square = f'<rect x="{left}" y="360" width="20" height="18" rx="3" fill="{fill}" stroke="{INK}"'
    return f'{square} stroke-width="{3 if int8 else 1}"/>' + _text(left + 30, 374, words)


def _text(x: float, y: float, words: str, color: str = INK, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def _svg(width: int, height: int, alt: str, *parts: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}" stroke="{LINE}"/>'
    style = 'font-family="system-ui, sans-serif" font-size="13"'
    return "\n".join((f"{head} {style}>", f"<title>{escape(alt)}</title>", ground, *parts, "</svg>")) + "\n"


def pictures(found: Found) -> dict[str, str]:
    """Returns the SVG text of each file."""
    return dict(zip(PICTURES, (block_picture(found.config), scene_picture(found), shift_picture(found))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the pictures and prints the figures that they show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="DIR", help="folder of the pictures")
    args = parser.parse_args(arguments)
    require_writable_folder(args.out)
    found = find()
    for name, text in pictures(found).items():
        with replacing(args.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    columns, rows = (jaccard(*pair) for pair in (found.shift.columns, found.shift.rows))
    print(f"keys + b: attention {found.shift.attention:.1e}, columns keep Jaccard {columns:.2f}, rows {rows:.2f}")
    print(f"class {found.label}, answers {found.answers[0]} and {found.answers[1]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
