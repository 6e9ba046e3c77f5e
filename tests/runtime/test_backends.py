from __future__ import annotations

import importlib
import sys

import pytest

from gft_edge.errors import ConfigError, MissingExtraError
from gft_edge.hardware.environment import PACKAGES
from gft_edge.runtime.backends import BACKENDS, DEFAULT, NAMES, backend_of_module, find_backend, names_text


def test_default_is_named_in_help_texts():
    assert DEFAULT == "onnxruntime"
    assert all(name in names_text() for name in NAMES)


@pytest.mark.parametrize("backend", BACKENDS, ids=NAMES)
class TestEachBackend:
    def test_is_found_by_name_and_module(self, backend):
        assert find_backend(backend.name) == (backend, "")
        assert backend_of_module(backend.module) is backend

    def test_extra_is_that_of_the_package(self, backend):
        assert backend.extra == PACKAGES[backend.module][1]

    def test_opener_can_be_called(self, backend):
        module, _, function = backend.opener.partition(":")
        assert callable(getattr(importlib.import_module(module), function))

    def test_only_engines_have_keys(self, backend):
        text = f"{backend.name}:some-key"
        if backend.runs_engines:
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
