"""The reader of attribute uses, on short sources."""

from __future__ import annotations

import pytest

from .attribute_uses import Uses

RETURNS = {
    "": {"Builder": "", "BuilderFlag": "", "Logger": ""},
    "Builder": {"create_builder_config": "IBuilderConfig"},
    "BuilderFlag": {"FP16": ""},
    "IBuilderConfig": {"set_flag": "", "DLA_core": ""},
}


def uses(body: str, more: str = "") -> set[tuple[str, str, frozenset[str], str | None]]:
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    found = Uses(f"def run(trt, plan):\n{indented}\n{more}", RETURNS, ("run",)).found
    return {(use.owner, use.member, use.guards, use.from_plan) for use in found}


NONE = frozenset()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("trt.Builder(1)", ("", "Builder", NONE, None)),
        ("b = trt.Builder(1)\nb.create_builder_config()", ("Builder", "create_builder_config", NONE, None)),
        ("c = trt.Builder(1).create_builder_config()\nc.DLA_core = 1", ("IBuilderConfig", "DLA_core", NONE, None)),
        ("c: tensorrt.IBuilderConfig = f()\nc.set_flag(1)", ("IBuilderConfig", "set_flag", NONE, None)),
        ("if plan.dla_core:\n    trt.Logger(1)", ("", "Logger", frozenset({"dla_core"}), None)),
        ("x = trt.Logger if plan.rtx else 1", ("", "Logger", frozenset({"rtx"}), None)),
        ("getattr(trt.BuilderFlag, plan.flag)", ("BuilderFlag", "", NONE, "flag")),
        ("for n in plan.flags:\n    getattr(trt.BuilderFlag, n)", ("BuilderFlag", "", NONE, "flags")),
        ("try:\n    pass\nfinally:\n    trt.Logger(1)", ("", "Logger", NONE, None)),
        ("class C(trt.Logger):\n    pass", ("", "Logger", NONE, None)),
        ("[c.DLA_core for c in [trt.Builder(i).create_builder_config() for i in x]]", ("IBuilderConfig", "DLA_core", NONE, None)),
    ],
)  # fmt: skip
def test_uses_are_found_with_owner_and_guards(body, expected):
    assert expected in uses(body)


def test_functions_are_followed_with_the_guards_of_the_call():
    helper = "def helper(config: tensorrt.IBuilderConfig):\n    config.set_flag(1)"
    found = uses("c = trt.Builder(1).create_builder_config()\nif plan.weak:\n    helper(c)", helper)
    assert ("IBuilderConfig", "set_flag", frozenset({"weak"}), None) in found


def test_an_argument_of_another_class_is_a_mismatch():
    source = "def run(trt):\n    helper(trt.Builder(1))\ndef helper(config: tensorrt.IBuilderConfig):\n    pass"
    assert len(Uses(source, RETURNS, ("run",)).mismatches) == 1


def test_unknown_objects_are_not_attributes_of_tensorrt():
    assert not Uses("def run(trt, x):\n    x.Builder", RETURNS, ("run",)).found
