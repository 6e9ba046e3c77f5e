"""Mutates inputs with a seed, according to their format: JSON values, lines of text, fields of ONNX, bytes."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

INTERESTING = (0, 1, 4, 8, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    -1e308,
    1e308,
    0.5,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "x" * 5000,
    "\x1b[31m",
    "\ud800",
    "\u202e",
    "a\nb",
    "$\\frac{$",
    "../../etc/passwd",
    "/etc/passwd",
    "{{7*7}}",
    "<script>",
    "%s{}",
    "\x00",
    [],
    {},
    [[]],
    [None],
    ["x"],
    [1e999],
    {"x": None},
    {"": []},
    [0] * 3000,
)
TOKENS = (
    "",
    "=",
    "[",
    "]",
    "{",
    '"',
    "'",
    "\x00",
    "\ufeff",
    "\r",
    "nan",
    "1e999",
    "-1",
    "9" * 400,
    "0x7f800000",
    "é",
    "\u202e",
    "\x1b[2J",
    "a.a.a.a",
    "CPU [",
    "VDD_IN",
    "[I]",
    "ms",
    "%",
    "@",
    ",",
    ":",
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Changes bits, bytes and numbers of 1 to 8 bytes; moves, removes and repeats blocks; truncates."""
    new = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not new:
            return bytes(new)
        place = rng.randrange(min(len(new), rng.choice((64, 512, len(new)))))
        length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(new) - place)
        kind = rng.randrange(8)
        if kind == 0:
            new[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            new[place] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTERESTING) & (256**size - 1)
            new[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            del new[place : place + length]
        elif kind == 4:
            new[place:place] = new[place : place + length]
        elif kind == 5:
            new[place:place] = rng.randbytes(length)
        elif kind == 6:
            other = rng.randrange(len(new))
            new[place : place + length] = new[other : other + length]
        elif rng.random() < 0.3:
            del new[place:]
    return bytes(new)


def mutate_text(data: bytes, rng: random.Random) -> bytes:
    """Changes lines and words, sometimes bytes."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    lines = data.decode("utf-8", "replace").splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(lines) + 1)
        kind = rng.randrange(8)
        line = lines[place] if place < len(lines) else ""
        if kind == 0 and line:
            del lines[place]
        elif kind == 1:
            lines.insert(place, line)
        elif kind == 2:
            lines.insert(place, rng.choice(TOKENS))
        elif kind == 3:
            lines[place : place + 1] = [re.sub(r"-?[\d.]+", lambda m: rng.choice((m[0], *TOKENS)), line)]
        elif kind == 4:
            cut = rng.randrange(len(line) + 1)
            lines[place : place + 1] = [line[:cut] + rng.choice(TOKENS) + line[cut:]]
        elif kind == 5:
            lines[place : place + 1] = [line[: rng.randrange(len(line) + 1)]]
        elif kind == 6:
            words = line.split(" ")
            rng.shuffle(words)
            lines[place : place + 1] = [" ".join(words)]
        elif kind == 7 and rng.random() < 0.2:
            lines[place : place + 1] = [(line[:40] or "x") * rng.choice((100, 3000))]
    return "\n".join(lines).encode("utf-8", "replace")


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replaces, removes, duplicates or nests values; sometimes changes the text."""
    kind = rng.random()
    if kind < 0.08:
        return mutate_bytes(data, rng)
    if kind < 0.1:
        deep = rng.choice((500, 5000, 100_000))
        return b"[" * deep if rng.random() < 0.5 else b'{"a":' * deep
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = mutate_value(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.03:  # a duplicate key
        text = re.sub(r'("\w+": )', lambda m: m[1] + "0, " + m[1] if rng.random() < 0.1 else m[1], text)
    return text.encode("utf-8", "surrogatepass")


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Returns a JSON value with one random change."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in list(entries):
            places.append((node, key))
            walk(child)

    walk(value)
    if not places or rng.random() < 0.02:
        return _any_value(rng)
    node, key = rng.choice(places)
    kind = rng.randrange(10)
    if kind < 5:
        node[key] = _similar_value(node[key], rng)
    elif kind == 5:
        del node[key]
    elif kind == 6 and isinstance(node, dict):
        node[f"{key}{rng.choice(TOKENS)}"] = node.pop(key)
    elif kind == 7:
        other, name = rng.choice(places)
        found = _get(other, name)
        node[key] = json.loads(json.dumps(found))
    elif kind == 8:
        node[key] = [node[key]] if rng.random() < 0.5 else {"x": node[key]}
    elif isinstance(node, list):
        node.insert(key, json.loads(json.dumps(node[key])))
    else:
        node[rng.choice(TOKENS)] = _any_value(rng)
    return value


def _any_value(rng: random.Random) -> Any:
    """Returns a copy of one of :data:`VALUES`: a shared list could come to contain itself."""
    return copy.deepcopy(rng.choice(VALUES))


def _get(node: Any, key: Any) -> Any:
    try:
        return node[key]
    except (LookupError, TypeError):  # an earlier change removed it
        return None


def _similar_value(value: Any, rng: random.Random) -> Any:
    """Returns a value of the same type in about half of the calls, else any value."""
    if rng.random() < 0.5:
        if isinstance(value, bool):
            return not value
        if isinstance(value, (int, float)):
            as_float = float(value) if abs(value) <= sys.float_info.max else 1e300
            return rng.choice((value + 1, value - 1, -value, value * 1000, as_float, 0, 10**18, 1e300))
        if isinstance(value, str):
            cut = rng.randrange(len(value) + 1)
            return value[:cut] + rng.choice(TOKENS) + value[cut:]
        if isinstance(value, list) and value:
            return rng.choice((value[:-1], value[::-1], value * 2))
    return _any_value(rng)


def mutate_onnx(data: bytes, rng: random.Random) -> bytes:
    """Changes decoded fields of the graph, so that the parser still accepts the file; sometimes changes bytes."""
    import onnx

    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    model = onnx.ModelProto()
    model.ParseFromString(data)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_graph(model, graph, rng)
    return bytes(model.SerializeToString())


def _change_graph(model: Any, graph: Any, rng: random.Random) -> None:
    from onnx import TensorProto, helper

    names = [name for node in graph.node for name in (*node.input, *node.output)] + [i.name for i in graph.initializer]
    node = rng.choice(list(graph.node)) if graph.node else helper.make_node("Identity", ["a"], ["b"])
    kind = rng.randrange(20)
    if kind in (0, 1) and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", *node.output])
    elif kind == 2 and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice([*names, "", *node.input])
    elif kind == 3:
        node.op_type = rng.choice(
            [n.op_type for n in graph.node] + ["", "Nothing", "If", "Loop", "Split", "TopK", "Reshape"]
        )
    elif kind == 4:
        node.domain = rng.choice(("", "com.microsoft", "ai.onnx.ml", "x" * 100))
    elif kind == 5 and node.attribute:
        attribute = rng.choice(list(node.attribute))
        attribute.i = rng.choice((0, -1, 2**31, 2**62, -(2**62)))
        if rng.random() < 0.5:
            attribute.type = rng.choice((0, 1, 2, 3, 4, 6, 7, 8))
    elif kind == 6 and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif kind == 7:
        name = rng.choice(("axis", "perm", "to", "k", "num_outputs"))
        node.attribute.append(helper.make_attribute(name, rng.choice((0, -5, 10**9))))
    elif kind == 8:
        del graph.node[rng.randrange(len(graph.node))]
    elif kind == 9:
        copy = graph.node.add()
        copy.CopyFrom(node)
    elif kind == 10 and node.output:
        del node.output[-1]
    elif kind == 11 and node.input:
        del node.input[-1]
    elif kind == 12:
        node.output.append(rng.choice([*names, "new"]))
    elif kind in (13, 14, 15) and graph.initializer:
        tensor = rng.choice(list(graph.initializer))
        if kind == 13:
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
        elif kind == 14:
            tensor.data_type = rng.choice((0, 1, 2, 3, 6, 7, 8, 9, 10, 14, 16, 17, 23, 99))
        elif tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, -1, 1, 7, 2**31, 2**62))
    elif kind == 16 and graph.initializer:
        tensor = rng.choice(list(graph.initializer))
        tensor.data_location = TensorProto.EXTERNAL
        place = rng.choice(("/etc/passwd", "../../x", "missing.bin", "", ".", "model.onnx"))
        tensor.external_data.add(key="location", value=place)
        tensor.external_data.add(key="offset", value=rng.choice(("0", "-1", "x", "9" * 30)))
    elif kind == 17 and (graph.input or graph.output):
        value = rng.choice([*graph.input, *graph.output])
        shape = value.type.tensor_type.shape
        if shape.dim:
            dim = rng.choice(list(shape.dim))
            dim.dim_value = rng.choice((0, -1, 1, 2**40))
        value.type.tensor_type.elem_type = rng.choice((value.type.tensor_type.elem_type, 0, 8, 99))
    elif kind == 18 and model.opset_import:
        model.opset_import[0].version = rng.choice((0, -1, 1, 7, 13, 99, 2**40))
    elif kind == 19:
        if rng.random() < 0.5:
            model.ir_version = rng.choice((0, 1, 3, 99))
        else:
            inner = helper.make_graph([node], "inner", [], [])
            node.attribute.append(helper.make_attribute("body", inner))


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Changes the JSON header and usually corrects its length, or changes bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    header = mutate_json(data[8 : 8 + size], rng)
    length = len(header) if rng.random() < 0.9 else rng.choice(INTERESTING)
    return struct.pack("<Q", length & (2**64 - 1)) + header + data[8 + size :]


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Changes an entry of a zip file (npz, .pth) and corrects the checksums, or changes bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = old.read(name)
            if name != chosen:
                new.writestr(name, content)
            elif rng.random() < 0.9:
                new.writestr(name if rng.random() < 0.9 else name + "x", mutate_bytes(content, rng))
    return out.getvalue()


def mutate_npz(data: bytes, rng: random.Random) -> bytes:
    """Changes shapes, types and values of arrays, or mutates the file as a zip file."""
    if rng.random() < 0.4:
        return mutate_zip(data, rng)
    arrays = dict(np.load(io.BytesIO(data)))
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    kind = rng.randrange(9)
    if kind == 0:
        arrays[name] = array[: rng.randrange(len(array) + 1)]
    elif kind == 1:
        arrays[name] = array.astype(rng.choice(("float64", "float16", "int8", "int64", "complex64", "U8", "bool")))
    elif kind == 2:
        arrays[name] = array.reshape(-1)
    elif kind == 3:
        arrays[name] = np.full_like(array, rng.choice((0, 1, 127)))
    elif kind == 4 and array.dtype.kind == "f":
        arrays[name] = np.where(np.arange(array.size).reshape(array.shape) == 3, rng.choice((np.nan, np.inf)), array)
    elif kind == 5:
        arrays[name] = array[..., : array.shape[-1] // 2]
    elif kind == 6:
        del arrays[name]
    elif kind == 7:
        arrays[name] = np.zeros(())
    else:
        arrays[name] = np.concatenate([array, array])
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def mutate_sealed(data: bytes, rng: random.Random) -> bytes:
    """Changes a JSON record and usually seals it again, as an attacker who knows the format does."""
    changed = mutate_json(data, rng)
    return reseal(changed) if rng.random() < 0.85 else changed


def reseal(data: bytes) -> bytes:
    """Returns the record with a correct seal; returns data unchanged if it is not a JSON object."""
    from gft_edge.files import canonical_json
    from gft_edge.storage.seals import SEAL, seal_of

    try:
        record = json.loads(data)
        return canonical_json({**record, SEAL: seal_of(record)}).encode()
    except (ValueError, TypeError, RecursionError):
        return data


MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": mutate_bytes,
    "text": mutate_text,
    "json": mutate_json,
    "onnx": mutate_onnx,
    "safetensors": mutate_safetensors,
    "zip": mutate_zip,
    "npz": mutate_npz,
    "sealed": mutate_sealed,
}
"""Functions that mutate an input, by its format."""
