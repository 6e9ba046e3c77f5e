"""Huge pages: which memory is a session's own, and what the kernel says to the request."""

import mmap
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gft_edge.runtime.backends import huge_pages as pages

MAPS = """\
55d0c8a00000-55d0c8a21000 r--p 00000000 fe:00 131203                     /usr/bin/python3.11
55d0ca1b6000-55d0ca3d1000 rw-p 00000000 00:00 0                          [heap]
7f10a0000000-7f10a4000000 rw-p 00000000 00:00 0
7f10a4000000-7f10a4021000 rw-s 00000000 00:01 2051                       /dev/shm/x y
7f10b0000000-7f10b0200000 ---p 00000000 00:00 0
7ffd5f5c1000-7ffd5f5e2000 rw-p 00000000 00:00 0                          [stack]
7f10c0000000-7f10c0001000 rw-p 00003000 fe:00 77                         /lib/libc.so.6
"""
needs_huge_pages = pytest.mark.skipif(not pages.on_request(), reason="this kernel gives no huge pages on request")


def test_private_memory_without_a_file_is_found_in_a_recorded_map(tmp_path):
    file = tmp_path / "maps"
    file.write_text(MAPS)
    assert pages.anonymous_regions(file) == [(0x55D0CA1B6000, 0x55D0CA3D1000), (0x7F10A0000000, 0x7F10A4000000)]
    assert pages.anonymous_regions(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("always [madvise] never\n", True),
        ("[always] madvise never\n", False),
        ("always madvise [never]\n", False),
    ],
)
def test_who_gets_huge_pages_is_the_kernels_setting(tmp_path, text, answer):
    file = tmp_path / "enabled"
    file.write_text(text)
    assert pages.on_request(file) is answer
    assert not pages.on_request(tmp_path / "missing")


@st.composite
def regions(draw):
    """Disjoint intervals of small integers, in any order."""
    edges = sorted(draw(st.sets(st.integers(0, 40), max_size=12)))
    return draw(st.permutations(list(zip(edges[::2], edges[1::2]))))


@given(regions(), regions())
def test_what_was_added_is_the_difference_of_the_sets(before, after):
    found = pages.added(before, after)
    members = [address for start, end in found for address in range(start, end)]
    covered = [{a for start, end in some for a in range(start, end)} for some in (before, after)]
    assert sorted(members) == sorted(covered[1] - covered[0])
    assert pages.size(found) == len(members)


@needs_huge_pages
def test_the_kernel_holds_the_memory_in_huge_pages():
    with mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE) as memory:
        view = np.frombuffer(memory, np.uint8)
        start = view.ctypes.data
        assert pages.request([(start + 1, start + (1 << 20))]) == 0, "no whole huge page lies within"
        agreed = pages.request([(start, start + len(view))])
        assert len(view) - 2 * pages.PAGE < agreed <= len(view)
        view = None
    assert pages.request([(start, start)]) == 0


@pytest.fixture(scope="module")
def large_model():
    """A serialized model with a product of 48 MiB."""
    weight = np.random.default_rng(0).standard_normal((3 * 64 * 64, 1024), dtype=np.float32)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 64, 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1024])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


LATE = """
import gc, sys
from pathlib import Path
import numpy as np, onnxruntime
from gft_edge.runtime.backends.sessions import onnxruntime_session

class Late(onnxruntime.InferenceSession):
    def __init__(self, *args, **kwargs):
        gc.collect()
        super().__init__(*args, **kwargs)

model = Path(sys.argv[1]).read_bytes()
plain = onnxruntime_session(model, False, 1)
gc.disable()
garbage = [np.ones(len(model), dtype=np.uint8) for _ in range(8)]
garbage.append(garbage)
del garbage
onnxruntime.InferenceSession = Late
held = onnxruntime_session(model, False, 1, huge_pages=True)
assert plain.options["huge_pages_bytes"] == 0
assert held.options["huge_pages_bytes"] >= len(model) // 2, held.options
images = np.random.default_rng(1).standard_normal((3, 3, 64, 64), dtype=np.float32)
np.testing.assert_array_equal(plain(images)["logits"], held(images)["logits"])
"""


@needs_huge_pages
def test_a_large_model_is_held_in_huge_pages_even_where_garbage_gives_way_to_it(large_model, tmp_path):
    """In a process of its own: what earlier tests have freed may be used again at any time."""
    (tmp_path / "model.onnx").write_bytes(large_model)
    subprocess.run([sys.executable, "-c", LATE, str(tmp_path / "model.onnx")], check=True)
