#!/usr/bin/env bash
# Compiles every CUDA kernel for the architectures that the program is meant to run on, and prints registers and spills.
#
# Usage: scripts/cuda_kernels.sh [ARCHITECTURE...]     (default: sm_80 sm_90 sm_120)
# Takes nvcc from NVCC, else from CUDA_PATH, else from PATH. Needs no GPU. The build itself makes PTX for compute_80 only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../crates/model/src/ops/cuda"

nvcc="${NVCC:-${CUDA_PATH:+$CUDA_PATH/bin/}nvcc}"
if ! command -v "$nvcc" >/dev/null; then
    echo "error: there is no $nvcc; set CUDA_PATH to where CUDA is installed" >&2
    exit 1
fi
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT

failed=0
for architecture in "${@:-sm_80 sm_90 sm_120}"; do
    for one in $architecture; do
        for source in *.cu; do
            if ! "$nvcc" -cubin "-arch=$one" -std=c++17 -O3 --expt-relaxed-constexpr -Werror all-warnings -Xptxas -v \
                -o "$out/kernels.cubin" "$source" >"$out/log" 2>&1; then
                cat "$out/log" >&2
                failed=1
                continue
            fi
            kernels="$(grep -c 'Compiling entry function' "$out/log" || true)"
            registers="$(sed -n 's/.*Used \([0-9]*\) registers.*/\1/p' "$out/log" | sort -n | tail -1)"
            spills="$(grep -vc ' 0 bytes spill stores, 0 bytes spill loads' <(grep 'bytes spill' "$out/log") || true)"
            printf '%-8s %-22s %2d kernels, at most %3d registers, %d with spills\n' "$one" "$source" "$kernels" "${registers:-0}" "$spills"
        done
    done
done
exit "$failed"
