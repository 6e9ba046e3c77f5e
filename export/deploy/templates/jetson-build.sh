#!/bin/sh
# Builds the TensorRT engines of this bundle on the board and enters them in the manifest of artifact/.
# The flags are those of plan.json, for @TITLE@ with TensorRT @TENSORRT@. Not verified on hardware.
#
#   ./build.sh                environment: TRTEXEC, TENSORRT, POWER_MODE, GFT_EDGE, BOARD_ROOT (README.md)
set -eu
cd "$(dirname "$0")"
# shellcheck source=jetson-checks.sh
. ./checks.sh

require_board
require_trtexec
require_version
require_power_mode
require_gft_edge
[ -w artifact/manifest.json ] || stop "$PWD/artifact cannot be written to; copy the bundle to the home folder"
say "GPU clocks: $(gpu_clocks); kernels are timed at the present ones, lock them first: sudo jetson_clocks"
mkdir -p artifact/engines artifact/reports artifact/caches

# Arguments: graph in artifact/, address of this budget for gft-edge, end of the engine's name.
build_engine() {
    engine=artifact/caches/@KEY_START@${VERSION}@KEY_END@$3.engine # becomes part of artifact/engines with its record alone
    log=artifact/reports/trtexec-build$3.log
    say "building ${engine##*/} from artifact/$1 with TensorRT $VERSION; this takes minutes"
    rm -f "$engine"
    code=0
    "$TRTEXEC" \
@ARGUMENTS@ \
        >"$log" 2>&1 || code=$?
    if [ "$code" -ne 0 ] || [ ! -s "$engine" ]; then
        grep -F '[E]' "$log" >&2 || tail -n 20 "$log" >&2
        rm -f "$engine"
        stop "trtexec wrote no engine (exit code $code); its output is in $log"
    fi
    built=$(version_in <"$log")
    [ "$built" = "$VERSION" ] || stop "$log: trtexec says it is TensorRT ${built:-of no version}, not $VERSION; the engine is not entered"
    "$GFT_EDGE" build "$2" --engine "$engine" --plan-file plan.json --tensorrt "$VERSION"
    rm -f "$engine"
}

@BUILDS@
say "done; next: @SELFTEST@ --backend tensorrt"
