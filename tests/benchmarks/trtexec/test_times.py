"""Times that trtexec exports: checks and figures."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gft_edge.benchmarks.trtexec.times import latency_of, parse_times, percentile
from gft_edge.errors import ArtifactError, GFTEdgeError

DATA = Path(__file__).parents[2] / "recorded/trtexec"


def text(name):
    return (DATA / name).read_text()


def _rounded(value):
    """To a 32-bit float."""
    return struct.unpack("f", struct.pack("f", value))[0]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([50, 90, 95, 99, 99.9]))
def test_percentile_is_the_element_trtexec_takes(samples, percent):
    n = len(samples)
    excluded = math.floor(_rounded(_rounded(1 - _rounded(percent / 100)) * n))
    assert percentile(samples, percent) == sorted(samples)[max(n - 1 - excluded, 0)]


def test_percentiles_of_a_hundred_queries():
    samples = [float(i) for i in range(100, 0, -1)]
    assert [percentile(samples, p) for p in (50, 90, 95, 99, 100)] == [50, 90, 95, 100, 100]
    assert percentile([7.0], 1) == 7


def queries(n=3):
    return json.loads(text("times.json"))[:n]


def test_exported_times_become_rounds_of_ten():
    latency = latency_of(parse_times(json.loads(text("times.json"))))
    samples = [query["latencyMs"] for query in json.loads(text("times.json"))]
    assert np.shape(latency.rounds_ms) == (12, 10)
    assert np.concatenate(latency.rounds_ms).tolist() == samples
    assert latency.p50_ms == np.median(samples)
    assert latency.p99_ms == percentile(samples, 99)
    assert latency.verdict == "stable"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda q: [], "a run of zero length: it has no query"),
        (lambda q: {"times": q}, "expected the list of objects"),
        (lambda q: [1, 2], "expected the list of objects"),
        (lambda q: [q[1], q[0]], "query 2: the clock goes backwards"),
        (lambda q: [{**q[0], "latencyMs": -1}], "query 1: the clock goes backwards"),
        (lambda q: [{**q[0], "endComputeMs": q[0]["startComputeMs"] - 1}], "query 1: the clock goes backwards"),
        (lambda q: [{**q[0], "computeMs": "4"}], "query 1: computeMs '4' is not"),
        (lambda q: [{**q[0], "computeMs": math.nan}], "computeMs 'nan' is not"),
        (lambda q: [{k: v for k, v in q[0].items() if k != "h2dMs"}], "query 1 has no h2dMs"),
        (lambda q: [dict.fromkeys(q[0], 0)] * 3, "every query took 0 ms"),
    ],
)
def test_times_that_cannot_be_used_are_refused(damage, message):
    with pytest.raises(ArtifactError, match=message):
        parse_times(damage(queries()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*queries()[0], "name", "x"]), inner, max_size=13)
    ),
    max_leaves=30,
)


@given(JSON)
def test_no_times_are_more_than_an_error(data):
    try:
        parse_times(data)
    except GFTEdgeError as error:
        assert "\n" not in str(error)
