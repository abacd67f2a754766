#!/usr/bin/env bash
# Makes the folder that device.sh takes to a machine with a GPU, where there is neither cargo nor a
# network: a stripped release build, the Vulkan loader, the golden cases that are small enough,
# cards, PyTorch's side. Less than 40 MiB, as the repository travels with it, 64 MiB in all.
#
#     benches/device_build.sh [FOLDER]
#
# default: device-pack in the repository's root, which git ignores. GOLDENS names the folder of the
# golden cases, PEERS_TARGET the one to build in.
set -eu
cd "$(dirname "$0")/.."
pack="${1:-device-pack}"
target="${PEERS_TARGET:-$PWD/benches/peers/target}"
goldens="${GOLDENS:-../shared/golden}"
most=$((40 << 20))
(cd benches/peers && CARGO_TARGET_DIR="$target" cargo build --release --locked \
    --no-default-features --bin device)
rm -rf "$pack"
mkdir -p "$pack/lib" "$pack/goldens"
cp "$target/release/device" "$pack/"
strip "$pack/device"
cp -r benches/cards "$pack/cards"
cp benches/peers/device_layers.json benches/peers/device_torch.py benches/peers/windowed.py "$pack/"
loader=$(ldconfig -p | sed -n 's/.*libvulkan\.so\.1 (.*x86-64.*) => //p' | head -n1)
[ -z "$loader" ] || cp -L "$loader" "$pack/lib/libvulkan.so.1"
# the smallest first, as many as fit
size() { du -sb "$1" | cut -f1; }
if [ -d "$goldens" ]; then
    for case in $(du -sb "$goldens"/*/ | sort -n | cut -f2); do
        if [ $(($(size "$pack") + $(size "$case"))) -lt $most ]; then
            cp -r "$case" "$pack/goldens/"
        else
            echo "left out: $(basename "$case")"
        fi
    done
    chmod -R u+w "$pack/goldens"
else
    echo "no golden cases at $goldens (GOLDENS names their folder)" >&2
fi
echo "$pack: $(($(size "$pack") >> 20)) MiB, $(ls "$pack/goldens" | wc -l) golden cases"
