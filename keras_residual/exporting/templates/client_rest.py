"""Send images or arrays to a served model over REST. Requires only Python, and NumPy for arrays.

    python client_rest.py cat.jpg dog.png
    python client_rest.py batch.npy

Images are sent to the signature `serving_bytes`, arrays `(N, ...)` to `serving_default`.
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--url", default="http://127.0.0.1:8501", help="URL of the server (default: %(default)s)")
    parser.add_argument(
        "--model", default=Path(__file__).resolve().parent.name, help="name of the model (default: %(default)s)"
    )
    parser.add_argument("--model-version", help="model version (default: the latest)")
    parser.add_argument("--signature", help="signature to call (default: chosen by the type of the files)")
    options = parser.parse_args()

    arrays = all(file.suffix == ".npy" for file in options.files)
    if arrays:
        import numpy as np

        inputs = np.concatenate([np.load(file) for file in options.files]).tolist()
        signature = options.signature or "serving_default"
    else:
        inputs = [{"b64": base64.b64encode(file.read_bytes()).decode()} for file in options.files]
        signature = options.signature or "serving_bytes"
    version = f"/versions/{options.model_version}" if options.model_version else ""
    request = urllib.request.Request(
        f"{options.url}/v1/models/{options.model}{version}:predict",
        json.dumps({"signature_name": signature, "inputs": inputs}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            outputs = json.load(response)["outputs"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.code}: {error.read().decode(errors='replace')}")
    if not isinstance(outputs, dict):  # the server omits the name of a single output
        outputs = {"outputs": outputs}
    names = options.files if not arrays else range(len(inputs))
    for i, name in enumerate(names):
        row = {key: value[i] for key, value in outputs.items()}
        if row.get("errors"):
            print(f"{name}: {row['errors']}")
        elif "scores" in row:
            pairs = zip(row.get("labels", row["classes"]), row["scores"], strict=True)
            print(f"{name}: " + ", ".join(f"{label} {score:.1%}" for label, score in pairs))
        else:
            print(f"{name}: {row}")


if __name__ == "__main__":
    main()
