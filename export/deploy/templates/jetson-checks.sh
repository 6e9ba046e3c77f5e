# Functions that build.sh and bench.sh share: which board, power mode, clocks and TensorRT this is.
# shellcheck shell=sh

ROOT=${BOARD_ROOT:-} # folder with the board's /proc, /sys and /var, for containers that mount them elsewhere
TITLE='@TITLE@'
PARTS='@PARTS@' # part numbers of the module in the device tree
GFT_EDGE=${GFT_EDGE:-gft-edge}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

stop() {
    say "$*"
    exit 2
}

require_board() {
    tree=$ROOT/proc/device-tree
    [ -r "$tree/compatible" ] || stop "no device tree in $tree, so this is no Jetson; copy this folder to the $TITLE"
    if ! tr '\0' '\n' <"$tree/compatible" | grep -Eq "$PARTS"; then
        model=$(tr -d '\0' <"$tree/model" 2>/dev/null || echo 'an unknown board')
        stop "this is $model, and the bundle is for $TITLE; on the PC, make one for this board: @AGAIN@ --device DEVICE"
    fi
}

require_gft_edge() {
    command -v "$GFT_EDGE" >/dev/null 2>&1 ||
        stop "$GFT_EDGE is not on PATH; install the wheel (README.md, step 2) and activate its environment, or set GFT_EDGE"
}

# Sets MODE and MODE_NUMBER.
require_power_mode() {
    MODE_NUMBER=${POWER_MODE:-}
    MODE="mode $MODE_NUMBER"
    asked=$(nvpmodel -q 2>/dev/null || true)
    if [ -z "$MODE_NUMBER" ]; then
        MODE_NUMBER=$(printf '%s\n' "$asked" | sed -n '/^NV Power Mode:/{n;s/^\([0-9][0-9]*\).*/\1/p;}')
        MODE="$(printf '%s\n' "$asked" | sed -n 's/^NV Power Mode: *//p') (mode $MODE_NUMBER)"
    fi
    if [ -z "$MODE_NUMBER" ] && [ -r "$ROOT/var/lib/nvpmodel/status" ]; then
        MODE_NUMBER=$(sed -n 's/.*pmode:0*\([0-9][0-9]*\).*/\1/p' "$ROOT/var/lib/nvpmodel/status")
        MODE="mode $MODE_NUMBER"
    fi
    case $MODE_NUMBER in
    '' | *[!0-9]*)
        stop "the power mode is unknown; 'sudo nvpmodel -q' prints it and 'sudo nvpmodel -m NUMBER' sets it; in a container give it as POWER_MODE=NUMBER"
        ;;
    esac
    say "power mode: $MODE"
}

# Prints "locked" if the GPU's lowest and highest clock are the same, else what is known.
gpu_clocks() {
    shown=$(jetson_clocks --show 2>/dev/null | sed -n 's/^GPU .*MinFreq=\([0-9][0-9]*\) .*MaxFreq=\([0-9][0-9]*\).*/\1 \2/p')
    if [ -z "$shown" ]; then # it needs root; the kernel's files do not
        for folder in @DEVFREQ@; do
            folder=$ROOT/sys/class/devfreq/$folder
            if [ -r "$folder/min_freq" ] && [ -r "$folder/max_freq" ]; then
                shown="$(cat "$folder/min_freq") $(cat "$folder/max_freq")"
                break
            fi
        done
    fi
    if [ -z "$shown" ]; then
        echo 'unknown'
    elif [ "${shown% *}" = "${shown#* }" ]; then
        echo 'locked'
    else
        echo "free between ${shown% *} and ${shown#* } Hz"
    fi
}

# Sets TRTEXEC.
require_trtexec() {
    TRTEXEC=${TRTEXEC:-$(command -v trtexec || true)}
    for folder in @PLACES@; do
        [ -n "$TRTEXEC" ] || [ ! -x "$folder/trtexec" ] || TRTEXEC=$folder/trtexec
    done
    [ -n "$TRTEXEC" ] || stop "trtexec is not in PATH, @PLACES@; install it: sudo apt install libnvinfer-bin; or give its path as TRTEXEC=PATH"
}

# Reads output of trtexec and prints its version: 8.6.2 for v8602, 10.3.0 for v100300.
version_in() {
    number=$(sed -n 's/.*\[TensorRT v\([0-9][0-9]*\)\].*/\1/p' | head -n 1)
    if [ -z "$number" ]; then
        return
    elif [ "$number" -lt 10000 ]; then
        echo "$((number / 1000)).$((number / 100 % 10)).$((number % 100))"
    else
        echo "$((number / 10000)).$((number / 100 % 100)).$((number % 100))"
    fi
}

# Sets VERSION; stops at another generation than the plan's, whose flags and graph differ.
require_version() {
    VERSION=${TENSORRT:-$("$TRTEXEC" --help 2>&1 | version_in)}
    if [ -z "$VERSION" ]; then
        # shellcheck disable=SC2016 # the braces are dpkg-query's
        VERSION=$(dpkg-query -W -f '${Version}' libnvinfer-bin 2>/dev/null | sed -n 's/^\([0-9]*\.[0-9]*\.[0-9]*\).*/\1/p' || true)
    fi
    case $VERSION in
    [0-9]*.[0-9]*.[0-9]*) ;;
    *) stop "the version of $TRTEXEC is unknown; give it as TENSORRT=10.3.0 (dpkg -l | grep libnvinfer prints it)" ;;
    esac
    major=${VERSION%%.*}
    minor=${VERSION#*.}
    series=$((major * 100 + ${minor%%.*}))
    if [ "$series" -lt @LOWEST@ ] || [ "$series" -gt @HIGHEST@ ]; then
        stop "this board has TensorRT $VERSION, and the bundle is planned for @TENSORRT@ (@JETPACKS@); on the PC: @AGAIN@ --device @DEVICE@ --tensorrt $VERSION"
    fi
}
