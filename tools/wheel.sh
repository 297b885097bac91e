#!/bin/sh
# The wheel with machine code for every GPU since Turing, and PTX for those to come; and a check that this is what it holds.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export VGGNET_CUDA=1 VGGNET_CUDA_ARCHS="${VGGNET_CUDA_ARCHS:-75 80 86 89 90 100 120}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$python" -m pip wheel -q --no-deps --no-build-isolation --wheel-dir "$scratch" .
"$python" -m zipfile -e "$scratch"/vggnet-*.whl "$scratch"
"$python" tools/fatbin.py "$scratch"/vggnet/_cuda*.so | sort >"$scratch/found"
kernels=$(ls csrc/cuda/*.cu | wc -l)
for arch in $VGGNET_CUDA_ARCHS; do
    echo "sm_$arch $kernels"
done >"$scratch/expected"
echo "ptx_$arch $kernels" >>"$scratch/expected" # PTX of the last, which later GPUs run
sort "$scratch/expected" | diff - "$scratch/found" || { echo "wheel: other code than expected (<)" >&2; exit 1; }
mkdir -p dist
mv "$scratch"/vggnet-*.whl dist
ls -l "$scratch"/vggnet/_cuda*.so dist/*.whl
