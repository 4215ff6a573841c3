#!/usr/bin/env bash
# Collects the wheels that a GPU machine without network still needs, at the versions of constraints.txt.
#
#   bench/offline.sh [FOLDER]      default: .whl
#
# That machine has Python 3.12 for x86_64 with torch >= 2.11, triton, transformers, peft, accelerate, safetensors, numpy,
# scipy, pillow, huggingface_hub, rich, typer, prometheus_client and uvloop. There:
#
#   python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl && export PYTHONPATH=SITE
#   python3 -m pytest -m gpu -s tests/gpu tests/integration/test_half_precision.py
#   python3 -m bench.gpu
set -euo pipefail

root=$(cd -- "$(dirname -- "$0")/.." && pwd -P)
folder=${1:-$root/.whl}
limit_mib=64

missing=(
    # models
    diffusers importlib_metadata zipp
    # HTTP
    fastapi starlette uvicorn httptools websockets watchfiles python-multipart python-dotenv
    pydantic pydantic_core pydantic-settings annotated-types typing-inspection typing_extensions annotated-doc anyio
    httpx2 httpcore2 truststore opentelemetry-api idna
    # store
    SQLAlchemy alembic Mako
    # images, JSON, base64
    isal orjson pybase64
    # tests
    pytest pluggy iniconfig hypothesis
)
# pip wants each tag named: a wheel for glibc 2.17 is not found under 2.28.
platforms=(manylinux_2_{39,35,34,31,28,27,26,24,17,12,5}_x86_64 manylinux2014_x86_64 manylinux1_x86_64)

pins=()
for name in "${missing[@]}"; do
    pin=$(grep -i -m 1 "^$name==" "$root/constraints.txt") || {
        echo "offline: constraints.txt does not pin $name" >&2
        exit 1
    }
    pins+=("$pin")
done

rm -rf -- "$folder"
python3 -m pip --disable-pip-version-check download --quiet --dest "$folder" --no-deps --only-binary=:all: \
    --implementation cp --python-version 3.12 "${platforms[@]/#/--platform=}" "${pins[@]}"

bytes=$(cat -- "$folder"/*.whl | wc -c)
printf '%d wheels, %d.%d MiB in %s\n' "${#pins[@]}" $((bytes >> 20)) $((bytes % 1048576 * 10 >> 20)) "$folder"
if ((bytes > limit_mib << 20)); then
    echo "offline: more than $limit_mib MiB" >&2
    exit 1
fi
