"""The bundle for a Jetson: plan, scripts that build and measure on the board, the program's wheel, and a page with the steps.

No engine is in it: engines are built on the board, by its own TensorRT, and enter the artefact's manifest there.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gft_edge import __version__
from gft_edge.bundle import ARTIFACT
from gft_edge.errors import CheckFailed, ConfigError
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.export.deploy.wheel import write_wheel
from gft_edge.export.tensorrt.build import plan_build, require_dialect_of
from gft_edge.export.tensorrt.build_plan import BuildPlan, build_command, engine_key
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.files import write_json
from gft_edge.hardware.devices import PARTS, Device, device
from gft_edge.hardware.jetpack import JetPack, minor_span, releases_with
from gft_edge.hardware.jetson import GPU_DEVFREQ
from gft_edge.hardware.tensorrt_versions import default_version, generation, require_together
from gft_edge.manifest import MODEL, Artifact, load_artifact

TEMPLATES = Path(__file__).parent / "templates"
TRTEXEC_PLACES = ("/usr/src/tensorrt/bin", "/opt/tensorrt/bin", "/usr/local/tensorrt/bin")
"""Folders of trtexec that are not on PATH."""
SELFTEST = "gft-edge selftest ."
ISAAC = "gft_edge.export.deploy.isaac"
PLAN = "plan.json"
_SAFE = re.compile(r"[A-Za-z0-9_=.,:/+@-]*")
"""Text that a shell takes as it is."""
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
_VERSION_MARK = "VERSION"


@dataclass(frozen=True)
class _Budget:
    """A graph of the artefact.

    Attributes:
        artifact: the artefact, or a member of its family.
        end: of the engine's name.
    """

    artifact: Artifact
    end: str

    @property
    def graph(self) -> str:
        """Name of the graph's file."""
        member = self.artifact.manifest.family.get(self.artifact.member)
        return MODEL if member is None else member.model

    @property
    def address(self) -> str:
        """What the verbs call it inside the bundle."""
        return f"{ARTIFACT}@{self.artifact.member}" if self.artifact.member else ARTIFACT


def check(artifact: Artifact, options: BundleOptions) -> None:
    """Refuses an artefact that the board's TensorRT cannot build.

    Raises:
        ConfigError: no device, an unknown one, one that is no Jetson or whose TensorRT is unknown or too old, a graph in
            another dialect (with the command that exports the right one), or types that the board lacks.
        CheckFailed: lint finds errors in the graph for this board.
    """
    _plan(artifact, options)
    if options.isaac_ros:
        importlib.import_module(ISAAC).check(artifact, options)


def write_files(folder: Path, artifact: Artifact, options: BundleOptions) -> dict[str, Any]:
    """Writes the files beside ``artifact/`` and returns the facts of the record.

    Args:
        folder: of the bundle, with ``artifact/`` in place.
        artifact: the source.
        options: device, version of TensorRT, wheel.

    Raises:
        ConfigError: as :func:`check`, or the program's wheel cannot be made.
    """
    plan = _plan(artifact, options)
    budgets = _budgets(artifact)
    write_json(folder / PLAN, plan.to_json())
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in artifact.manifest.labels), encoding="utf-8")
    wheel = write_wheel(folder, options.wheel)
    values = _values(artifact, plan, budgets, options) | {"WHEEL": wheel.name}
    for template, name in (
        ("jetson-checks.sh", "checks.sh"),
        ("jetson-build.sh", "build.sh"),
        ("jetson-bench.sh", "bench.sh"),
        ("jetson-README.md", "README.md"),
    ):
        target = folder / name
        target.write_text(fill((TEMPLATES / template).read_text(encoding="utf-8"), values), encoding="utf-8")
        if name in ("build.sh", "bench.sh"):
            target.chmod(0o755)
    more = importlib.import_module(ISAAC).write_files(folder, artifact, options) if options.isaac_ros else {}
    return {
        "tensorrt": plan.tensorrt,
        "generation": plan.generation,
        "dialect": plan.dialect,
        "compute_capability": plan.compute_capabilities[0],
        "budgets": [budget.artifact.manifest.budget.id for budget in budgets],
        "wheel": wheel.name,
        **more,
    }


def fill(template: str, values: Mapping[str, str]) -> str:
    """Returns a template with every ``@NAME@`` replaced; ``USER@BOARD`` stays.

    Raises:
        KeyError: a name without a value.
    """
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def _plan(artifact: Artifact, options: BundleOptions) -> BuildPlan:
    profile = _jetson(options.device)
    version = options.tensorrt or default_version(profile)
    require_together(version, profile)
    made: list[BuildPlan] = []
    for budget in _budgets(artifact):
        require_dialect_of(budget.artifact, version)
        weak = generation(version).typing == "weak"  # it has FP16 by a flag alone
        build = BuildOptions(batch=artifact.manifest.batch, tensorrt=options.tensorrt or None, weak=weak)
        planned = plan_build(budget.artifact, options.device, build)
        if planned.report.errors:
            first = planned.report.errors[0]
            raise CheckFailed(
                f"bundle {budget.artifact.address}: {first.rule} {first.node}: {first.message}; all reasons: gft-edge lint "
                f"{budget.artifact.address} --target {options.device} --tensorrt {version}"
            )
        made.append(planned.plan)
    return made[0]


def _jetson(name: str) -> Device:
    """Returns the profile of a Jetson.

    Raises:
        ConfigError: no name, an unknown one, or another GPU.
    """
    if not name:
        raise ConfigError("target jetson needs --device, for example orin-nano, agx-orin or thor")
    profile = device(name)
    if not profile.is_jetson:
        raise ConfigError(
            f"target jetson: {profile.title} is no Jetson, and no TensorRT of a JetPack is known for it; use --target triton or "
            f"onnxruntime, or gft-edge build ARTIFACT --target this-gpu on the machine itself"
        )
    return profile


def _budgets(artifact: Artifact) -> tuple[_Budget, ...]:
    members = (load_artifact(f"{artifact.path}@{name}") for name in artifact.manifest.family)
    return (_Budget(artifact, ""), *(_Budget(member, f"_{member.member}") for member in members if member.member))


def _values(
    artifact: Artifact, plan: BuildPlan, budgets: tuple[_Budget, ...], options: BundleOptions
) -> dict[str, str]:
    """Returns the text of every placeholder but the wheel's name."""
    profile, manifest = device(options.device), artifact.manifest
    version = str(plan.tensorrt)
    lowest, highest = (100 * major + minor for major, minor in minor_span(version))
    start, end = engine_key(plan, _VERSION_MARK).split(_VERSION_MARK)
    releases = releases_with(version)
    _require_safe(text for budget in budgets for text in (budget.graph, budget.address, budget.end))
    image = manifest.inputs[0]
    return {
        "NAME": artifact.name,
        "FOLDER": "BUNDLE",
        "TITLE": profile.title,
        "DEVICE": profile.name,
        "VERSION": __version__,
        "PARTS": "|".join(part for part, first in PARTS.items() if profile.name.startswith(first)),
        "TENSORRT": version,
        "LOWEST": str(lowest),
        "HIGHEST": str(highest),
        "JETPACKS": _jetpacks(releases),
        "CUDA": releases[-1].cuda if releases else "12.6",
        "AGAIN": "gft-edge bundle ARTIFACT --target jetson",
        "DEVFREQ": " ".join(GPU_DEVFREQ),
        "PLACES": " ".join(TRTEXEC_PLACES),
        "KEY_START": start,
        "KEY_END": end,
        "ARGUMENTS": " \\\n".join(f'        "{word}"' for word in _words(plan)[1:]),
        "BUILDS": "\n".join(f"build_engine '{b.graph}' '{b.address}' '{b.end}'" for b in budgets),
        "BENCHES": "\n".join(f"bench_engines '{b.address}' '{b.end}'" for b in budgets),
        "BATCHES": " ".join(map(str, dict.fromkeys(manifest.batch[1:]))),
        "INPUT": f"{image.name} ({', '.join(map(str, image.shape))}) {image.dtype}",
        "CLASSES": str(len(manifest.labels)),
        "PRECISION": manifest.precision.upper(),
        "DIALECT": manifest.dialect,
        "BUDGETS": ", ".join(b.artifact.manifest.budget.id for b in budgets),
        "MEANING": plan.meaning,
        "NOTES": "".join(f"\n- {note}" for note in plan.notes),
        "COMMAND": " ".join(_words(plan, shown=True)),
        "WEAK": " --weak" if plan.is_weak else "",
        "SELFTEST": SELFTEST,
    }


def _words(plan: BuildPlan, *, shown: bool = False) -> tuple[str, ...]:
    """Returns the plan's command with this bundle's paths; as the script has it, or to show to people.

    Raises:
        ConfigError: trtexec cannot do it, or a name of the graph has characters that a shell would interpret.
    """
    graph, engine, mode = (MODEL, f"{ARTIFACT}/caches/KEY.engine", "N") if shown else ("$1", "$engine", "$MODE_NUMBER")
    cache = f"{ARTIFACT}/caches/{str(plan.timing_cache).removesuffix('.cache')}_mode{mode}.cache"
    words = build_command(replace(plan, timing_cache=cache), f"{ARTIFACT}/{graph}", engine)
    if words is None:
        raise ConfigError(f"target jetson: no trtexec command does what the plan for {plan.target} says")
    if shown:
        _require_safe(words)
    return words


def _require_safe(texts: Iterable[str]) -> None:
    """Refuses names that a shell would interpret: the scripts of the bundle contain them."""
    for text in texts:
        if not _SAFE.fullmatch(text):
            raise ConfigError(
                f"target jetson: {text!r} has characters that a shell interprets; export the artefact again with plain names"
            )


def _jetpacks(releases: tuple[JetPack, ...]) -> str:
    if not releases:
        return "no JetPack installs it by itself"
    return "; ".join(f"JetPack {r.releases}, which has TensorRT {r.tensorrt} and Python {r.python}" for r in releases)
