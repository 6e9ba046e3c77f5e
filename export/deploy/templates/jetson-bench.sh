#!/bin/sh
# Measures the engines of this bundle on the board: with trtexec, and through Python where its TensorRT is installed.
# Figures are in artifact/reports/bench-*.json. Not verified on hardware.
#
#   sudo env PATH="$PATH" ./bench.sh        locks the clocks meanwhile and restores them
#   ./bench.sh [--unlocked]                 without root; the clocks must be locked, or are let be with --unlocked
set -eu
cd "$(dirname "$0")"
# shellcheck source=jetson-checks.sh
. ./checks.sh

unlocked=no
case ${1:-} in
'') ;;
--unlocked) unlocked=yes ;;
*) stop "unknown argument $1; there is --unlocked" ;;
esac
require_board
require_power_mode
require_gft_edge
lock=
clocks=$(gpu_clocks)
if [ "$clocks" = locked ]; then
    say 'GPU clocks: locked'
elif [ "$(id -u)" -eq 0 ]; then
    lock=--lock-clocks
    say "GPU clocks: $clocks; locked during the measurement"
elif [ "$unlocked" = yes ]; then
    say "warning: GPU clocks: $clocks; figures of unlocked clocks cannot be compared"
else
    stop "GPU clocks: $clocks; run 'sudo jetson_clocks' first, or 'sudo env PATH=\"\$PATH\" ./bench.sh', or give --unlocked"
fi

# Arguments: address of this budget for gft-edge, end of the engines' names.
bench_engines() {
    found=no
    for engine in artifact/engines/@KEY_START@*@KEY_END@"$2".engine; do
        [ -f "$engine" ] || continue
        found=yes
        key=${engine##*/}
        key=${key%.engine}
        # shellcheck disable=SC2086 # $lock is one word or none
        "$GFT_EDGE" bench "$1" --trtexec-engine "$key" ${TRTEXEC:+"--trtexec=$TRTEXEC"} --target @DEVICE@ $lock --out "artifact/reports/bench-trtexec-$key.json"
        code=0
        # shellcheck disable=SC2086
        "$GFT_EDGE" bench "$1" --backend "tensorrt:$key" --batch @BATCHES@ $lock --out "artifact/reports/bench-python-$key.json" || code=$?
        case $code in
        0) ;;
        3) say 'measured with trtexec alone: TensorRT or cuda-python is missing in Python (README.md, step 2)' ;;
        *) exit "$code" ;;
        esac
    done
    [ "$found" = yes ] || stop "no engine for $1 in artifact/engines; run ./build.sh first"
}

@BENCHES@
say 'done; figures are in artifact/reports, README.md step 7 copies them back'
