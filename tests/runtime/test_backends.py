from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from gft_edge.errors import ConfigError, MissingExtraError
from gft_edge.hardware.environment import PACKAGES
from gft_edge.runtime.backends.table import (
    BACKENDS,
    DEFAULT,
    NAMES,
    backend_of_module,
    find_backend,
    markdown_table,
    names_text,
    parse_backend,
    require_settings,
)

PAGE = Path(__file__).parents[2] / "docs/backends.md"


def test_default_is_named_in_help_texts():
    assert DEFAULT == "onnxruntime"
    assert all(name in names_text() for name in NAMES)


@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
class TestEachBackend:
    def test_is_found_by_name_and_module(self, backend):
        assert find_backend(backend.name) == (backend, "")
        assert backend_of_module(backend.module).module == backend.module

    def test_extra_is_that_of_the_package(self, backend):
        assert backend.extra == PACKAGES[backend.module][1]

    def test_opener_can_be_called(self, backend):
        module, _, function = backend.opener.partition(":")
        assert callable(getattr(importlib.import_module(module), function))

    def test_packages_are_known(self, backend):
        assert backend.packages
        for package in backend.packages:
            assert {package} <= set(PACKAGES) if isinstance(package, str) else set(package) <= set(PACKAGES)

    def test_settings_are_refused_where_there_are_none(self, backend):
        assert parse_backend(f"{backend.name},cuda_graph=on").switch("cuda_graph")
        if backend.settings:
            require_settings(backend.name, {"cuda_graph": "on"}, backend.settings)
        else:
            with pytest.raises(ConfigError, match=f"backend {backend.name}: has no setting 'cuda_graph'; it has none"):
                require_settings(backend.name, {"cuda_graph": "on"}, backend.settings)

    def test_only_engines_and_checkpoints_are_keys(self, backend):
        text = f"{backend.name}:some-key"
        if backend.takes:
            assert find_backend(text) == (backend, "some-key")
        else:
            with pytest.raises(ConfigError, match=backend.name):
                find_backend(text)

    def test_missing_module_names_its_extra(self, backend, monkeypatch):
        monkeypatch.setitem(sys.modules, backend.module, None)
        with pytest.raises(MissingExtraError) as caught:
            backend.import_module()
        assert caught.value.extra == backend.extra


@pytest.mark.parametrize("text", ["tensorflow", "", "ONNXRuntime", ":key"])
def test_unknown_backend_is_refused_with_the_known_ones(text):
    with pytest.raises(ConfigError) as caught:
        find_backend(text)
    assert all(name in str(caught.value) for name in (repr(text), *NAMES))


@pytest.mark.parametrize("part", ["cuda_graph", "=on", "cuda_graph=", ""])
def test_a_setting_is_a_name_and_a_value(part):
    with pytest.raises(ConfigError, match="must be NAME=VALUE, as tensorrt,cuda_graph=on"):
        parse_backend(f"tensorrt:key,{part}")


def test_a_request_has_backend_key_and_settings():
    asked = parse_backend("tensorrt:trt1,cuda_graph=off,a=b=c")
    assert (asked.backend.name, asked.key, dict(asked.settings)) == (
        "tensorrt",
        "trt1",
        {"cuda_graph": "off", "a": "b=c"},
    )
    assert not asked.switch("cuda_graph")
    with pytest.raises(ConfigError, match="a=b=c: expected on or off"):
        asked.switch("a")


def test_a_misspelt_name_has_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'onnxruntime-cuda'"):
        find_backend("onnxruntime-cude")


def test_the_page_has_the_table_as_it_is():
    assert markdown_table() in PAGE.read_text(encoding="utf-8")
