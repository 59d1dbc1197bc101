#!/bin/sh
# The steps of the images' build stage; both call it.
#   packages   the virtual environment from the pinned versions; --no-server leaves out Triton's,
#              --tools adds what loads and watches
#   project    the project itself, its core (compiled unless core/lib has it), the bill of materials
set -eu
root=/opt/toxicity
python=$root/.venv/bin/python

packages() {
    python3 -m venv "$root/.venv"
    $python -m pip install -q -c "$root/constraints.txt" -r /build/requirements.txt
    [ "${1:-}" != --tools ] ||
        $python -m pip install -q -c "$root/constraints.txt" -r /build/requirements-tools.txt
    [ "${1:-}" != --no-server ] || return 0 # the image has one
    # Only its tritonserver is used; its own requirements would hold back the others.
    $python -m pip install -q -c "$root/constraints.txt" --no-deps nvidia-pytriton
    # A read-only root: what would be done at the first start.
    chmod 755 "$root"/.venv/lib/python3*/site-packages/pytriton/tritonserver/bin/tritonserver
}

project() {
    cd "$root"
    if ! $python -c 'from core.build import is_current; raise SystemExit(not is_current())'; then
        python3 -m venv /build/compiler
        /build/compiler/bin/pip install -q -c constraints.txt -r /build/requirements.txt \
            cmake ninja ziglang
        /build/compiler/bin/python -m core.build
    fi
    rm -f core/lib/open_loop core/lib/libtriton_noop.so
    $python -m pip install -q --no-deps -e .
    $python -m pip uninstall -q -y pip
    python3 -m venv /build/sbom
    /build/sbom/bin/pip install -q "cyclonedx-bom==7.5.0"
    /build/sbom/bin/cyclonedx-py environment --output-reproducible --of JSON -o /build/sbom.json \
        --pyproject pyproject.toml "$python"
    find "$root" -name __pycache__ -prune -exec rm -rf {} +
    $python -m compileall -q "$root" -x 'pytriton/' || true
}

step=$1
shift
"$step" "$@"
