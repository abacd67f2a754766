#!/usr/bin/env bash
# The 8-channel-base, five-level U-Net with batch norm on a full 256x512x512 volume (D, H, W) within 512 MiB of device memory,
# f32, with progress and time to go on stderr and one JSON object on stdout. Minutes on two CPU cores.
# Other sizes: benches/fullres.sh --extent 64x128x128 --memory 25165824
cd "$(dirname "$0")/.." || exit 1
exec cargo bench --bench fullres -- "$@"
