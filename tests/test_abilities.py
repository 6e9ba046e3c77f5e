"""doctor's table: complete, and with a reason for every no. That it is true is shown by tests/test_board.py."""

from __future__ import annotations

import pytest

from gft_edge.cli import abilities as module
from gft_edge.cli.abilities import USES, abilities
from gft_edge.cli.main import VERBS
from gft_edge.hardware.environment import PACKAGES, REMEDIES, versions


@pytest.fixture
def installed(monkeypatch):
    """Pretends that everything is installed but some distributions, on a processor with the features given."""

    def pretend(*missing, features=(), driver=False):
        found = dict.fromkeys(versions(), "1.2") | dict.fromkeys(missing)
        monkeypatch.setattr(module, "versions", lambda: found)
        monkeypatch.setattr(module, "cpu", lambda: {"model": "x", "features": list(features), "cores": 1})
        monkeypatch.setattr(module, "has_nvidia_driver", lambda: driver)
        return {ability.name: ability for ability in abilities()}

    return pretend


def test_every_verb_is_in_the_table():
    assert {use.command.split()[0] for use in USES} == set(VERBS)
    assert len({use.command for use in USES}) == len(USES)


def test_everything_installed_works_but_for_what_needs_a_gpu(installed):
    found = installed(features=["asimddp"])
    assert {name for name, ability in found.items() if not ability.works} == {u.command for u in USES if u.driver}
    for use in USES:
        if use.driver:
            assert "no NVIDIA driver" in found[use.command].reason
    assert all(ability.works for ability in installed(features=["asimddp"], driver=True).values())


@pytest.mark.parametrize("name", sorted({m for use in USES for m in use.modules if isinstance(m, str)}))
def test_missing_package_takes_what_needs_it_and_names_the_extra(installed, name):
    distribution, extra = PACKAGES[name]
    found = installed(distribution, features=["avx_vnni"], driver=True)
    assert {n for n, a in found.items() if not a.works} == {use.command for use in USES if name in use.modules}
    how = REMEDIES.get(distribution, f"run: pip install 'gft-edge[{extra}]'").removeprefix("run: ")
    for ability in found.values():
        assert ability.works or f"needs {distribution}: {how}" in ability.reason


def test_one_of_two_is_enough(installed):
    use = "bench ARTIFACT --backend tensorrt"
    assert installed("cuda-python", driver=True)[use].works
    assert installed("torch", driver=True)[use].works
    lost = installed("cuda-python", "torch", driver=True)[use]
    assert not lost.works and lost.needs == ("tensorrt", "cuda-python or torch")
    assert "needs cuda-python: pip install 'gft-edge[trt]'" in lost.reason


def test_several_missing_packages_are_named_together(installed):
    reason = installed("torch", "onnxruntime")["verify ARTIFACT --checkpoint CKPT"].reason
    assert reason == "needs torch, onnxruntime: pip install 'gft-edge[onnx,train]'"


def test_tensorrt_of_a_jetson_is_its_own(installed):
    assert "on a Jetson the TensorRT of its JetPack" in installed("tensorrt")["build ARTIFACT --target this-gpu"].reason


@pytest.mark.parametrize(
    ("features", "works"), [(["avx2", "avx512f"], False), ([], False), (["avx512_vnni"], True), (["amx_int8"], True)]
)
def test_fast_int8_needs_a_dot_product_instruction(installed, features, works):
    ability = installed(features=features)["fast INT8 on this processor"]
    assert ability.works is works
    assert (", ".join(features) in ability.reason) if works else ("slow" in ability.reason)
