"""The packages that each verb needs: one table, which ``doctor`` prints and a test compares with every verb."""

from __future__ import annotations

from dataclasses import dataclass

from gft_edge.hardware.environment import PACKAGES, REMEDIES, cpu, has_nvidia_driver, versions
from gft_edge.runtime.backends.table import BACKENDS, DEFAULT

Module = str | tuple[str, ...]
"""An importable module, or alternatives."""


@dataclass(frozen=True)
class Use:
    """A way to use a verb.

    Args:
        command: verb and the options that its needs depend on.
        modules: keys of :data:`gft_edge.hardware.environment.PACKAGES`, beyond numpy, which every verb needs.
        driver: it needs a loaded NVIDIA driver.
    """

    command: str
    modules: tuple[Module, ...] = ()
    driver: bool = False


_CHECKPOINT: tuple[Module, ...] = ("torch", "timm", "safetensors")
_IMAGES: tuple[Module, ...] = ("torchvision", "PIL")
_EXPORT: tuple[Module, ...] = ("onnx", "onnxscript", "onnxslim")

USES = (
    Use("doctor"),
    Use("bench ARTIFACT", ("onnxruntime",)),
    Use("bench ARTIFACT --data D", ("onnxruntime", "PIL")),
    Use("bench ARTIFACT --trtexec-log FILE"),
    Use("selftest BUNDLE", ("onnxruntime",)),
    Use("selftest BUNDLE --key PUB.pem", ("onnxruntime", "cryptography")),
    Use("verify ARTIFACT", ("onnxruntime",)),
    Use("verify ARTIFACT --pixels DIR", ("PIL",)),
    Use("verify MODEL.onnx", ("onnx", "onnxruntime")),
    Use("bench MODEL.onnx", ("onnx", "onnxruntime")),
    Use("build MODEL.onnx --target DEVICE --plan", ("onnx",)),
    Use("build MODEL.onnx --target rtx", ("onnx", "tensorrt_rtx")),
    Use("predict ARTIFACT IMAGE", ("onnxruntime", "PIL")),
    Use("evaluate ARTIFACT --data FOLDER", ("onnxruntime", "PIL")),
    Use("controls ARTIFACT", ("onnx", "onnxruntime", "PIL")),
    Use("lint ARTIFACT", ("onnx",)),
    Use("build ARTIFACT --target DEVICE --plan", ("onnx",)),
    Use("bundle ARTIFACT --target jetson", ("onnx",)),
    Use("build ARTIFACT --target this-gpu", ("onnx", "tensorrt"), driver=True),
    Use("build ARTIFACT --target rtx", ("onnx", "tensorrt_rtx")),
    Use("build CKPT --target torch-tensorrt", (*_CHECKPOINT, "onnx", "torch_tensorrt"), driver=True),
    *(
        Use(f"bench ARTIFACT --backend {b.name}{':CKPT' * (b.takes == 'checkpoint')}", b.packages, driver=b.on_gpu)
        for b in BACKENDS
        if b.name != DEFAULT
    ),
    Use("report RUN_DIR", ("matplotlib", "jinja2")),
    Use("train --config RECIPE", (*_CHECKPOINT, *_IMAGES)),
    Use("distill --teacher CKPT", (*_CHECKPOINT, *_IMAGES)),
    Use("evaluate CKPT", (*_CHECKPOINT, *_IMAGES)),
    Use("controls CKPT", (*_CHECKPOINT, *_IMAGES)),
    Use("controls CKPT --out DIR", (*_CHECKPOINT, *_IMAGES, "matplotlib")),
    Use("search CKPT", (*_CHECKPOINT, *_IMAGES, "matplotlib", "jinja2")),
    Use("import-published FILE.pth", _CHECKPOINT),
    Use("adopt WEIGHTS", _CHECKPOINT),
    Use("adopt WEIGHTS --data D", (*_CHECKPOINT, *_IMAGES)),
    Use("calibrate CKPT", (*_CHECKPOINT, *_IMAGES, "matplotlib")),
    Use("calibrate ARTIFACT", (*_CHECKPOINT, *_IMAGES, "onnx", "onnxruntime", "matplotlib")),
    Use("sensitivity CKPT", (*_CHECKPOINT, *_IMAGES, "onnx", "onnxruntime", "matplotlib", "jinja2")),
    Use("quantize CKPT", (*_CHECKPOINT, *_IMAGES, "matplotlib")),
    Use("quantize MODEL.onnx --data D", ("torch", "safetensors", "PIL", "onnx", "onnxruntime", "matplotlib")),
    Use("export CKPT", (*_CHECKPOINT, *_IMAGES, *_EXPORT)),
    Use("sweep CKPT", (*_CHECKPOINT, *_EXPORT, "onnxruntime")),
    Use("sweep CKPT --out DIR", (*_CHECKPOINT, *_EXPORT, "onnxruntime", "matplotlib")),
    Use("verify ARTIFACT --checkpoint CKPT", (*_CHECKPOINT, *_IMAGES, *_EXPORT, "onnxruntime")),
    Use("demo", (*_CHECKPOINT, *_IMAGES, *_EXPORT, "onnxruntime", "matplotlib", "jinja2")),
)
"""Every verb, those of a board first."""

DOT_PRODUCT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})
"""Processor features with which INT8 is faster than FP32."""


@dataclass(frozen=True)
class Ability:
    """A use of the command line, and the reason why it works here or does not.

    Attributes:
        name: the command, or a property of this machine.
        works: True where it works.
        needs: distributions that it imports besides numpy; alternatives are joined by ``" or "``.
        reason: their versions, or the missing ones and the remedy.
    """

    name: str
    works: bool
    needs: tuple[str, ...]
    reason: str


def abilities() -> list[Ability]:
    """Returns the ability for every entry of the table, and for fast INT8 on this processor."""
    found, driver = versions(), has_nvidia_driver()
    fast = sorted(DOT_PRODUCT.intersection(cpu()["features"]))
    why = f"has {', '.join(fast)}" if fast else "no INT8 dot product instruction; INT8 will be slow here"
    return [*(ability(use, found, driver) for use in USES), Ability("fast INT8 on this processor", bool(fast), (), why)]


def ability(use: Use, found: dict[str, str | None], driver: bool) -> Ability:
    """Returns the ability of one use.

    Args:
        use: of the table.
        found: version of each distribution, None where it is not installed.
        driver: an NVIDIA driver is loaded.
    """
    groups = [_distributions(module) for module in use.modules]
    needs = tuple(" or ".join(group) for group in groups)
    missing = [group[0] for group in groups if not any(found[name] for name in group)]
    if missing:
        return Ability(use.command, False, needs, _remedy(missing))
    there = ", ".join(f"{name} {found[name]}" for group in groups for name in group if found[name])
    if use.driver and not driver:
        return Ability(use.command, False, needs, f"{there} is installed, but no NVIDIA driver is loaded")
    unproven = "; not verified on hardware" if use.driver else ""
    return Ability(use.command, True, needs, (there or "needs numpy alone") + unproven)


def _distributions(module: Module) -> tuple[str, ...]:
    return tuple(PACKAGES[name][0] for name in ((module,) if isinstance(module, str) else module))


def _remedy(missing: list[str]) -> str:
    extras = sorted({extra for name, extra in PACKAGES.values() if name in missing and name not in REMEDIES})
    own = [REMEDIES[name].removeprefix("run: ") for name in missing if name in REMEDIES]
    how = ([f"pip install 'gft-edge[{','.join(extras)}]'"] if extras else []) + own
    text = f"needs {', '.join(missing)}: {'; '.join(how)}"
    return text + (", on a Jetson the TensorRT of its JetPack" if "tensorrt" in missing else "")
