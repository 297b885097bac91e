#!/bin/sh
# Compiles every C file with gcc and clang, warnings being errors. Kernel files get their ISA's flags from their suffix.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
includes="-Icsrc -I$($python -c 'import sysconfig; print(sysconfig.get_path("include"))')"
includes="$includes -I$($python -c 'import numpy; print(numpy.get_include())')"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for cc in gcc clang; do
    command -v "$cc" >/dev/null || { echo "werror: $cc is not installed" >&2; exit 1; }
    for file in csrc/*/*.c tests/backend/*.c; do
        case $file in
            *_avx2.c) isa="-mavx2 -mfma" ;;
            *_avx512.c) isa="-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma" ;;
            *) isa="" ;;
        esac
        # shellcheck disable=SC2086
        "$cc" -std=c11 -DPy_LIMITED_API=0x030B0000 -DVGGNET_VERSION='"lint"' -O2 -fPIC -Wall -Wextra -Wconversion -Werror \
            $isa $includes -c "$file" -o "$scratch/object.o"
    done
    echo "werror: $cc is content"
done
