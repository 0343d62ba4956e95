#!/usr/bin/env bash
# Makes the environment in which the peers of tfexplain run: Python 3.11, TensorFlow 2.14 (Keras 2).
# Usage: make_environment.sh [FOLDER]
set -euo pipefail

folder="${1:-.venv-peers}"

if [ -e "$folder" ]; then
    echo "error: $folder exists; give another folder or remove it first" >&2
    exit 1
fi
if ! python3.11 -c 'import venv' >/dev/null 2>&1; then
    echo "error: no working python3.11 with the venv module on the PATH;" \
        "TensorFlow 2.14 and innvestigate 2.1 have no release for later versions" >&2
    exit 1
fi

python3.11 -m venv "$folder"
# innvestigate requires the package "tensorflow"; "tensorflow-cpu" would be a second copy of it.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    tensorflow==2.14.1 innvestigate==2.1.2 deeplift==0.6.13.0 \
    keras==2.14.0 numpy==1.26.4 protobuf==4.25.9 ml-dtypes==0.2.0 wrapt==1.14.2 h5py==3.16.0
"$folder/bin/python" -m pip check --disable-pip-version-check
TF_CPP_MIN_LOG_LEVEL=3 "$folder/bin/python" -c 'import deeplift, innvestigate' 2>/dev/null || {
    echo "error: $folder is made, but innvestigate or deeplift cannot be imported in it" >&2
    exit 1
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cat <<MESSAGE
The environment is ready. Go on with:
    $folder/bin/python "$here/run_innvestigate.py"     # files of results
    $folder/bin/python "$here/time_innvestigate.py"    # times on VGG-16
MESSAGE
