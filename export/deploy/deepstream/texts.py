"""Texts of a bundle for DeepStream: README, build script, export command."""

from __future__ import annotations

from gft_edge.manifest import MODEL, DeploymentManifest

MAX_BATCH = 1024
"""``NVDSINFER_MAX_BATCH_SIZE``."""


def export_command(manifest: DeploymentManifest) -> str:
    """Returns the export that gives a like artefact which nvinfer can use."""
    low, usual, high = manifest.batch
    words = ["gft-edge export CHECKPOINT --out ARTIFACT --input float255 --probabilities"]
    words += [f"--budget {budget}" for budget in (manifest.budget.id, *manifest.family)]
    if manifest.maps != "none":
        words.append(f"--maps {manifest.maps}")
    if not manifest.is_quantized:
        words.append(f"--precision {'fp16' if manifest.precision == 'bf16' else manifest.precision}")
    high = min(high, MAX_BATCH)
    words.append("--batch 1" if low == high == 1 else f"--batch 1:{min(usual, high)}:{high}")
    if manifest.dialect != "trt10":
        words.append(f"--dialect {manifest.dialect}")
    return " ".join(words)


def build_script(manifest: DeploymentManifest, batch: int, engine: str) -> str:
    """Returns a script that builds the engine as nvinfer would, and INT8 where nvinfer itself cannot."""
    name, spec = manifest.inputs[0].name, manifest.preprocess
    shape = f"3x{spec.height}x{spec.width}"
    words = ['"$trtexec"', f"--onnx={MODEL}", f'--saveEngine="{engine}"', "--skipInference"]
    if manifest.static_batch is None:
        words += [
            f"--{kind}Shapes={name}:{size}x{shape}" for kind, size in (("min", 1), ("opt", batch), ("max", batch))
        ]
    words += ["--int8"] if manifest.precision == "int8" else []
    words += ["--fp16"] if "fp16" in (manifest.precision, manifest.rest) else []
    command = " \\\n  ".join(words)
    return f"""#!/bin/sh
# Builds the engine on the device that runs it, with the trtexec of its TensorRT (8.6 or 10).
set -e
cd "$(dirname "$0")"
trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
{command}
"""


def readme(manifest: DeploymentManifest, config: str, engine: str, secondary: bool) -> str:
    """Returns the README of the folder, in Markdown."""
    parts = [_START.format(config=config, engine=engine), _SECONDARY if secondary else _PRIMARY.format(config=config)]
    if manifest.is_quantized:
        parts.append(_INT8)
    parts.append(_CROP.format(ratio=manifest.preprocess.crop_ratio) if manifest.preprocess.resize == "crop" else "")
    parts.append(_RESIZE)
    if manifest.maps != "none":
        tensors = "\n".join(
            f"| `{output.name}` | {output.dtype} | {' x '.join(map(str, output.shape[1:]))} | {output.meaning} |"
            for output in manifest.outputs
        )
        parts.append(
            _MAPS.format(
                tensors=tensors, where="obj_meta.obj_user_meta_list" if secondary else "frame_meta.frame_user_meta_list"
            )
        )
    if manifest.family:
        parts.append(
            f"The configuration runs budget {manifest.budget.id}; the artefact holds {', '.join(manifest.family)} too.\n"
        )
    return "\n".join(part for part in (*parts, _VERSIONS) if part)


_START = """# DeepStream

Not verified on hardware: the files follow NVIDIA's documentation and the sources of Gst-nvinfer.

1. Build the engine on the device: `sh build_engine.sh`. It writes `{engine}`, the name in `model-engine-file`.
   nvinfer builds an engine itself, in minutes, if it finds none of this name.
2. Compare on any machine, without a GPU: `gft-edge verify BUNDLE`. It computes what nvinfer makes of the images and names each
   difference from the artefact.
3. Run a pipeline with `{config}`.

Change `batch-size` and the name in `model-engine-file` together, and build again. Change no other key above
`classifier-threshold`: they belong to the graph.
"""
_PRIMARY = """## Whole frames

    gst-launch-1.0 filesrc location=VIDEO.mp4 ! qtdemux ! h264parse ! nvv4l2decoder ! mux.sink_0 \\
      nvstreammux name=mux batch-size=1 width=1920 height=1080 ! nvinfer config-file-path={config} ! \\
      nvvideoconvert ! nvdsosd ! fakesink

Give `width` and `height` of the stream itself: nvstreammux resizes to them before nvinfer resizes again.
"""
_SECONDARY = """## Objects of a detector

Place the element behind the detector and a tracker: `nvinfer` (detector, `gie-unique-id=1`) ! `nvtracker` ! `nvinfer` (this one).
`operate-on-gie-id` is the detector's `gie-unique-id`; `operate-on-class-ids=0;2` restricts it to some of its classes. Objects under
16 pixels are not classified: the scaling hardware fails on them. With `classifier-async-mode=1` the labels come some frames later;
leave it 0 if the same buffer is read.
"""
_INT8 = """## INT8

The ranges are in the graph (QuantizeLinear, explicit quantization). nvinfer sets TensorRT's INT8 flag only if the file that
`int8-calib-file` names exists; without one it says "INT8 calibration file not specified. Trying FP16 mode." and builds without the
flag, which TensorRT refuses for such a graph. So build the engine by `build_engine.sh`; `network-mode=1` then only names it.
"""
_CROP = """## Centre crop

The model was trained on the centre of the image (crop ratio {ratio:g}). nvinfer cannot cut it out: it stretches the whole frame.
Cut the frame before it, `nvvideoconvert src-crop=LEFT:TOP:WIDTH:HEIGHT` before nvstreammux, or give tensors by
Gst-nvdspreprocess (`input-tensor-meta=1` on nvinfer).
"""
_RESIZE = """## Resize

`scaling-filter=1` is bilinear without antialiasing; the training averages over all pixels. The effect grows with the size of the
frame; `gft-edge verify BUNDLE --data FOLDER` measures it on images. docs/deepstream.md of gft_edge has the remedies.
"""
_MAPS = """## Maps

The graph has more outputs than one. nvinfer's parser would read each as an attribute, so `network-type=100` switches it off and
`output-tensor-meta=1` attaches the tensors:

| output | type | shape | meaning |
|---|---|---|---|
{tensors}

    import ctypes, numpy, pyds

    item = {where}
    while item is not None:
        meta = pyds.NvDsUserMeta.cast(item.data)
        if meta.base_meta.meta_type == pyds.NvDsMetaType.NVDSINFER_TENSOR_OUTPUT_META:
            tensors = pyds.NvDsInferTensorMeta.cast(meta.user_meta_data)
            for number in range(tensors.num_output_layers):
                layer = pyds.get_nvds_LayerInfo(tensors, number)
                shape = layer.inferDims.d[: layer.inferDims.numDims]
                kind = ctypes.c_int32 if layer.layerName.startswith("kept_") else ctypes.c_float
                memory = ctypes.cast(pyds.get_ptr(layer.buffer), ctypes.POINTER(kind))
                values = numpy.ctypeslib.as_array(memory, tuple(shape))
        item = item.next
"""
_VERSIONS = """## Versions

By NVIDIA's release notes and migration guides; not tried.

| DeepStream | TensorRT | graph |
|---|---|---|
| 6.4, 7.0 | 8.6 | `gft-edge export --dialect trt8` |
| 7.1 | 10.3 | as exported |
| 8.0 | 10.9 (PC), 10.13 (Jetson) | as exported |
| 9.0 | 10.14 | as exported |

nvinfer and `build_engine.sh` let flags choose the types. TensorRT 11 has no such flags: remove `--fp16` and `--int8` there.
"""
