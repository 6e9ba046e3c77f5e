"""Make a folder for one place of use: the artefact, the files that place needs, and a record that hashes all of them.

Engines, caches and reports of the artefact are left behind: engines are built where they run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gft_edge.cli.common import add_new_folder

EXAMPLE = "gft-edge bundle runs/artifact --target jetson --device orin-nano --out runs/bundle --zip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument(
        "artifact", type=Path, metavar="ARTIFACT", help="artefact folder, or a bundle whose artefact to take"
    )
    parser.add_argument(
        "--target", required=True, choices=("jetson", "deepstream", "triton", "onnxruntime"), help="place of use"
    )
    add_new_folder(parser, "the bundle")
    parser.add_argument(
        "--device", default="", metavar="DEVICE", help="profile such as orin-nano or thor; jetson needs it"
    )
    parser.add_argument(
        "--tensorrt", default="", metavar="VERSION", help="TensorRT on the device (the device's newest)"
    )
    parser.add_argument(
        "--secondary", action="store_true", help="deepstream: classify objects that a detector found, not whole frames"
    )
    parser.add_argument("--isaac-ros", action="store_true", help="jetson: add a launch file for Isaac ROS")
    parser.add_argument(
        "--accelerator",
        default="",
        metavar="NAME",
        help="triton: cpu, gpu or tensorrt for ONNX Runtime (a GPU where there is one)",
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="jetson: wheel of gft-edge to put in (made of the installed package)"
    )
    parser.add_argument("--zip", action="store_true", help="write DIR.zip too, with the same bytes at every run")
    parser.add_argument(
        "--sign", type=Path, metavar="KEY.pem", help="private Ed25519 key, without passphrase, to sign with"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from gft_edge.bundle import SIGNATURE, open_artifact
    from gft_edge.cli.console import command, result
    from gft_edge.errors import EXIT_OK
    from gft_edge.export.deploy.bundling import make_bundle, zip_of
    from gft_edge.export.deploy.options import BundleOptions
    from gft_edge.hardware.devices import device
    from gft_edge.hardware.tensorrt_versions import assumed_version

    options = BundleOptions(
        target=args.target,
        device=args.device,
        tensorrt=args.tensorrt,
        secondary=args.secondary,
        isaac_ros=args.isaac_ros,
        accelerator=args.accelerator,
        wheel=args.wheel,
        zip=args.zip,
        sign=args.sign,
    )
    bundle = make_bundle(open_artifact(args.artifact), args.out, options)
    archive = zip_of(args.out) if args.zip else None
    signature = bundle.path / SIGNATURE if args.sign else None
    data = {
        "out": str(args.out),
        "zip": None if archive is None else str(archive),
        "signature": None if signature is None else str(signature),
        "target": bundle.target,
        "device": bundle.device,
        "artifact_id": bundle.artifact_id,
        "facts": dict(bundle.facts),
        "files": {name: {"size": info.size, "sha256": info.sha256} for name, info in bundle.files.items()},
    }
    place = f" on {bundle.device}" if bundle.device else ""
    lines = [
        f"{args.out}: bundle for {bundle.target}{place}, artefact {bundle.artifact_id}, {len(bundle.files)} more files"
    ]
    if args.target == "jetson" and not args.tensorrt:
        lines.append(f"note: {assumed_version(device(args.device))}")
    if archive is not None:
        lines.append(f"{archive}: {archive.stat().st_size / 1e6:.2f} MB")
    if signature is not None:
        lines.append(f"{signature}: check with {command('selftest', args.out, '--key', 'PUB.pem')}")
    result(args, data, "\n".join(lines))
    return EXIT_OK
