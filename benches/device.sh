#!/usr/bin/env bash
# What is to be known of a machine with a GPU, in one command of at most 8 minutes: golden cases,
# layers and kernels, the 32..320 networks at 256x512x512 within several budgets, attention of
# 131,072 tokens, and PyTorch where it is there (cuDNN in f32, TF32 and f16, contiguous and
# channels_last_3d). Needs the folder that device_build.sh makes, and no network. Every step has a
# time limit; one that fails is recorded, and the next begins. Writes device.json and device.md.
#
#     benches/device.sh [FOLDER] [--small] [--device D] [--out DIR] [--patience K]
#
# --small: small extents, for a software adapter. --patience: all time limits, that of the whole
# too, K times as long, for a machine that does other work. PYTHON names the Python that has PyTorch.
set -u
cd "$(dirname "$0")/.." || exit 1
pack=device-pack small="" device=() out="${OUT:-.}" patience=1
while [ $# -gt 0 ]; do
    case "$1" in
    --small) small=--small ;;
    --device) device=(--device "$2"); shift ;;
    --out) out="$2"; shift ;;
    --patience) patience="$2"; shift ;;
    -*) echo "device: $1 is unknown" >&2; exit 2 ;;
    *) pack="$1" ;;
    esac
    shift
done
if [ ! -x "$pack/device" ]; then
    echo "device: $pack/device is missing; make it with benches/device_build.sh" >&2
    exit 1
fi
mkdir -p "$out"
python="${PYTHON:-python3}"
begin=$SECONDS
total=$((470 * patience))
steps=()

# the loader that was carried is for machines without one
if ! ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1'; then
    export LD_LIBRARY_PATH="$PWD/$pack/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
# NVIDIA's driver as containers mount it, where loaders do not look
mounted=/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json
if [ -z "${VK_DRIVER_FILES:-}" ] && [ -e "$mounted" ]; then
    ls /usr/share/vulkan/icd.d/nvidia* /etc/vulkan/icd.d/nvidia* >/dev/null 2>&1 ||
        export VK_DRIVER_FILES="$mounted"
fi

# the end of a text as the inside of a JSON string
quoted() {
    tail -c 2000 | tr -d '\000-\010\013-\037' | tr '\t' ' ' |
        sed 's/\\/\\\\/g; s/"/\\"/g' | sed ':a;N;$!ba;s/\n/\\n/g'
}

# step NAME LIMIT COMMAND...: one object of device.json
step() {
    local name="$1" limit=$(($2 * patience)) left rc=null took=0 result=null stdout stderr started
    shift 2
    left=$((total - (SECONDS - begin)))
    [ "$limit" -le "$left" ] || limit=$left
    stdout=$(mktemp) stderr=$(mktemp)
    if [ "$limit" -gt 2 ]; then
        started=$(date +%s%N)
        timeout -k 5 "$limit" "$@" >"$stdout" 2>"$stderr"
        rc=$?
        took=$(awk "BEGIN { print ($(date +%s%N) - $started) / 1e9 }")
        case "$name" in
        # a line a case: those before a time limit count
        goldens | *layers | kernels)
            result="{\"cases\":[$(grep '^{.*}$' "$stdout" | paste -sd, -)]}"
            ;;
        *) grep -q '^{.*}$' "$stdout" && result=$(grep '^{.*}$' "$stdout" | tail -n1) ;;
        esac
    else
        echo "no time was left" >"$stderr"
    fi
    steps+=("{\"step\":\"$name\",\"rc\":$rc,\"seconds\":$took,\"limit\":$limit,\
\"stderr\":\"$(quoted <"$stderr")\",\"result\":$result}")
    printf '%4d s  %s: %s\n' $((SECONDS - begin)) "$name" "$rc" >&2
    rm -f "$stdout" "$stderr"
    # what was found so far is there whatever comes
    (
        IFS=,
        printf '{"machine":"%s","steps":[%s]}\n' "$machine" "${steps[*]}"
    ) >"$out/device.json"
}

machine=$({
    uname -srm
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    nproc --all
    date -u +%F
} 2>/dev/null | tr '\n' ';' | quoted)

ours() {
    local name="$1" limit="$2"
    shift 2
    step "$name" "$limit" "$pack/device" "$@" ${device[@]+"${device[@]}"} $small
}

net() {
    local card="$1" precision="$2" budget="$3" args=()
    [ "$budget" = none ] || args=(--memory "$budget")
    ours "organum $card $extent $precision, budget $budget" 60 net "$pack/cards/${card}_32.json" \
        "$extent" --precision "$precision" ${args[@]+"${args[@]}"}
}

torch() {
    local name="$1" limit="$2"
    shift 2
    step "$name" "$limit" "$python" "$pack/device_torch.py" "$@" $small
}

torch_net() {
    torch "PyTorch $1 $extent $2 $3" 60 net "$1" "$extent" --precision "$2" --layout "$3"
}

extent=256x512x512
budgets="none 12000000000 4000000000 2000000000 1000000000"
if [ -n "$small" ]; then extent=32x64x64 budgets="none 300000000"; fi
has_torch=""
"$python" -c 'import torch' 2>/dev/null && has_torch=yes

ours about 20 about
ours goldens 60 goldens "$pack/goldens"
# attention of 131,072 tokens is the last of the list
ours layers 60 layers "$pack/device_layers.json"
[ -z "$has_torch" ] || torch "torch layers" 70 layers "$pack/device_layers.json"
for budget in $budgets; do
    for card in nnu_net u_net; do
        for precision in f16 f32; do net $card $precision "$budget"; done
    done
done
if [ -n "$has_torch" ]; then
    for kind in nnu_net u_net; do
        torch_net $kind f16 channels_last_3d
        torch_net $kind f16 contiguous
        torch_net $kind tf32 channels_last_3d
        torch_net $kind f32 contiguous
    done
fi
ours kernels 90 kernels
"$pack/device" table "$out/device.json" | tee "$out/device.md"
