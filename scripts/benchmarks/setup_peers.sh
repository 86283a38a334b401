#!/usr/bin/env bash
# Installs the programs with which scripts/benchmarks/bench_peers.py and scripts/reference/check_protocols.py compare attn, in a
# folder that git ignores:
#   scripts/benchmarks/setup_peers.sh [FOLDER]     default: .models/peers
# It makes
#   FOLDER/venv           torch, transformers, lm-evaluation-harness and longppl
#   FOLDER/llama.cpp/bin  llama-bench, llama-quantize and llama-perplexity, built for this machine from the sources in
#                         the Python package llama_cpp_python
#   FOLDER/smollm2        the same weights for every program: SmolLM2-135M-Instruct as Hugging Face folders in f32 and bf16
#                         and as GGUF in F32, F16, BF16 and every quantised format, all made from the Q4_1 file
# and builds `attn` and a stock candle-transformers Llama. Takes about 10 GB, a C++ compiler, Python 3.10 or later and
# half an hour on two cores. Files that exist already are kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.models/peers}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

step() { printf '\n== %s\n' "$*"; }

step "Python packages"
[ -x "$folder/venv/bin/python" ] || python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install --quiet --disable-pip-version-check numpy safetensors gguf torch transformers accelerate tokenizers \
    cmake ninja scikit-build-core lm_eval
# Its dependencies are installed above.
pip install --quiet --disable-pip-version-check --no-deps longppl

step "llama.cpp"
if [ ! -x "$folder/llama.cpp/bin/llama-bench" ]; then
    sources=$(mktemp -d "$folder/sources.XXXXXX")
    trap 'rm -rf "$sources"' EXIT
    pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --no-build-isolation \
        --dest "$sources" llama_cpp_python==0.3.36
    tar xf "$sources"/llama_cpp_python-*.tar.gz -C "$sources"
    cmake -G Ninja -S "$sources"/llama_cpp_python-*/vendor/llama.cpp -B "$folder/llama.cpp" -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF
    ninja -C "$folder/llama.cpp" llama-bench llama-quantize llama-perplexity
fi

step weights
scripts/fetch_models.sh smollm2
source=$PWD/.models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
mkdir -p "$folder/smollm2"
ln -sf "$source" "$folder/smollm2/Q4_1.gguf"
quantize() { # FORMAT TYPE [OPTION..]
    local to=$folder/smollm2/$1.gguf
    [ -f "$to" ] || "$folder/llama.cpp/bin/llama-quantize" --allow-requantize "${@:3}" "$source" "$to" "$2"
}
for type in F32 F16 BF16 Q8_0 Q4_0 Q5_0 Q5_1 Q2_K Q3_K_M Q4_K_M Q5_K_M Q6_K IQ4_NL IQ4_XS; do
    quantize "$type" "$type"
done
# The type MXFP4_MOE leaves a model without experts in Q8_0.
quantize MXFP4 Q8_0 --tensor-type attn=mxfp4 --tensor-type ffn=mxfp4 --token-embedding-type mxfp4
for dtype in f32 bf16; do
    [ -f "$folder/smollm2/$dtype/model.safetensors" ] ||
        python scripts/benchmarks/peers/gguf_to_hf.py "$source" "$folder/smollm2/$dtype" --dtype "$dtype"
done

step "attn and candle-transformers"
cargo build --release --workspace --bin attn
# The workspace compiles candle-transformers without optimisation, because only tests use it. A benchmark needs it optimised.
cargo build --release -p integration --example bench_candle --target-dir "$folder/target" \
    --config 'profile.release.package.candle-transformers.opt-level=3'

step "ready; now run"
echo "$folder/venv/bin/python scripts/benchmarks/bench_peers.py"
echo "$folder/venv/bin/python scripts/benchmarks/bench_peers.py --model $folder/smollm2 \\"
echo "    --llama-bench $folder/llama.cpp/bin/llama-bench --candle $folder/target/release/examples/bench_candle"
echo "$folder/venv/bin/python scripts/benchmarks/bench_peers.py --model $folder/smollm2 --perplexity TEXT \\"
echo "    --llama-perplexity $folder/llama.cpp/bin/llama-perplexity"
echo "$folder/venv/bin/python scripts/reference/check_protocols.py target/release/attn --model $folder/smollm2/f32 --text TEXT \\"
echo "    --gguf $folder/smollm2/F16.gguf --llama-perplexity $folder/llama.cpp/bin/llama-perplexity"
