from __future__ import annotations

import pytest

from gft_edge.errors import ConfigError
from gft_edge.hardware.devices import DEVICES
from gft_edge.hardware.jetpack import RELEASES, minor_span, releases_with
from gft_edge.hardware.tensorrt_versions import generation


def test_every_tensorrt_of_a_module_is_in_a_release():
    apart = {"8.5", "10.7"}  # JetPack 5, unsupported; installed apart on JetPack 6
    named = {version for profile in DEVICES.values() for version in profile.tensorrt} - apart
    for version in named:
        assert releases_with(version), version
    assert releases_with("10.7") == ()
    assert [r.releases for r in releases_with("10.3")] == ["6.1 to 6.2.2"]
    assert all(tuple(map(int, r.python.split("."))) >= (3, 10) for r in RELEASES)


@pytest.mark.parametrize("version", ["8.6", "8.6.2", "10.0", "10.3.0", "10.7", "10.13.3", "10.16", "11.4.1"])
def test_span_is_the_versions_of_the_generation(version):
    major = version.split(".")[0]
    low, high = minor_span(version)
    for minor in range(40):
        try:
            same = generation(f"{major}.{minor}").name == generation(version).name
        except ConfigError:
            same = False  # older than supported
        assert same == (low <= (int(major), minor) <= high)
