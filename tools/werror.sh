#!/bin/sh
# Compiles every C file with gcc and clang, and every CUDA file with nvcc where there is one, warnings being errors. Kernel files
# get their ISA's flags from their suffix.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
includes="-Icsrc -I$($python -c 'import sysconfig; print(sysconfig.get_path("include"))')"
includes="$includes -I$($python -c 'import numpy; print(numpy.get_include())')"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# What setup.py finds: where CUDA's headers are, then nvcc and its flags, a line each; both empty where there is no CUDA.
VGGNET_WERROR=1 "$python" - >"$scratch/cuda" 2>/dev/null <<'END'
import runpy, setuptools
setuptools.setup = lambda **options: None
cuda = runpy.run_path("setup.py")["CUDA"]
print("" if cuda.why_not else " ".join(cuda.include))
print("" if cuda.why_not else " ".join([cuda.nvcc, *cuda.flags()]))
END
cuda_includes=$(sed -n 1p "$scratch/cuda")
nvcc=$(sed -n 2p "$scratch/cuda")
for cc in gcc clang; do
    command -v "$cc" >/dev/null || { echo "werror: $cc is not installed" >&2; exit 1; }
    for file in csrc/*/*.c tests/backend/*.c; do
        case $file in
            csrc/cuda/*) [ -n "$nvcc" ] || continue ;;
        esac
        case $file in
            *_avx2.c) isa="-mavx2 -mfma" ;;
            *_avx512.c) isa="-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma" ;;
            *) isa="" ;;
        esac
        # shellcheck disable=SC2086
        "$cc" -std=c11 -DPy_LIMITED_API=0x030B0000 -DVGGNET_VERSION='"lint"' -O2 -fPIC -Wall -Wextra -Wconversion -Werror \
            $isa $includes $cuda_includes -c "$file" -o "$scratch/object.o"
    done
    echo "werror: $cc is content"
done
if [ -n "$nvcc" ]; then
    for file in csrc/cuda/*.cu; do
        # shellcheck disable=SC2086
        $nvcc -Werror all-warnings -c "$file" -o "$scratch/object.o"
    done
    echo "werror: nvcc is content"
else
    echo "werror: csrc/cuda is left out: there is no nvcc, or headers are missing"
fi
