#!/usr/bin/env bash
# make gpu-test: all that only a GPU can show. Installs nothing and needs no network: torch, Triton, NumPy and pytest suffice,
# and nvcc, CMake and Ninja where the CUDA library is to be tested too. Usage: run.sh PYTHON [pytest arguments]
set -uo pipefail
cd "$(dirname "$0")/../.."
python=$1
shift
unset TRITON_INTERPRET
export PYTHONPATH=$PWD

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu-test: no GPU is visible: nothing to run here"
    exit 0
fi
LADDERKERN_BUILD_CUDA=auto LADDERKERN_BUILD_TESTS=0 "$python" setup.py -q build_ext --inplace \
    || echo "gpu-test: no native libraries could be built, Triton alone is tested"
"$python" -m ladderkern info

failed=()
run() { # name, command
    echo "== $1"
    "${@:2}" || failed+=("$1")
}
run "GPU tests" "$python" -m pytest -q tests/gpu "$@"
backends=(triton)
"$python" -c 'import sys; from ladderkern.runtime.library import CUDA; sys.exit(not CUDA.loaded)' && backends+=(cuda)
for backend in "${backends[@]}"; do
    # What the interpreter runs on CPU tensors elsewhere: the same inputs, oracle and budgets. Left out are two tests of
    # addresses, which are new at each call here, and those of guard bands about outputs, which are not made on the CPU here.
    run "all backends against the oracle: $backend" env LADDERKERN_TEST_ON="$backend" \
        "$python" -m pytest -q -m interpreter tests/spam tests/discrepancy tests/prm tests/ladder \
        -k "not walked_in_place and not uploaded_once and not written_beside_the_outputs" "$@"
done
if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null); then
    for tool in memcheck racecheck synccheck; do
        run "compute-sanitizer $tool" "$sanitizer" --tool "$tool" --error-exitcode 9 --target-processes all \
            "$python" -m pytest -q tests/gpu -k public "$@"
    done
else
    echo "== compute-sanitizer is not installed: races are not looked for"
fi
if ((${#failed[@]})); then
    printf 'gpu-test: failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "gpu-test: all passed, with ${backends[*]}"
