"""Send images or arrays to a served model over gRPC. Requires `pip install tensorflow-serving-api`.

    python client_grpc.py cat.jpg dog.png
    python client_grpc.py batch.npy

Images are sent to the signature `serving_bytes`, arrays `(N, ...)` to `serving_default`.
"""

import argparse
import sys
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--address", default="127.0.0.1:8500", help="address of the server (default: %(default)s)")
    parser.add_argument(
        "--model", default=Path(__file__).resolve().parent.name, help="name of the model (default: %(default)s)"
    )
    parser.add_argument("--model-version", type=int, help="model version (default: the latest)")
    parser.add_argument("--signature", help="signature to call (default: chosen by the type of the files)")
    options = parser.parse_args()

    arrays = all(file.suffix == ".npy" for file in options.files)
    if arrays:
        inputs = np.concatenate([np.load(file) for file in options.files])
    else:
        inputs = [file.read_bytes() for file in options.files]
    request = predict_pb2.PredictRequest()
    request.model_spec.name = options.model
    request.model_spec.signature_name = options.signature or ("serving_default" if arrays else "serving_bytes")
    if options.model_version is not None:
        request.model_spec.version.value = options.model_version
    request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(inputs))
    large = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    try:
        with grpc.insecure_channel(options.address, options=large) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = stub.Predict(request, timeout=60)
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
    outputs = {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}
    names = options.files if not arrays else range(len(inputs))
    for i, name in enumerate(names):
        row = {key: value[i] for key, value in outputs.items()}
        if row.get("errors"):
            print(f"{name}: {row['errors'].decode()}")
        elif "scores" in row:
            labels = [
                label.decode() if isinstance(label, bytes) else label for label in row.get("labels", row["classes"])
            ]
            pairs = zip(labels, row["scores"], strict=True)
            print(f"{name}: " + ", ".join(f"{label} {score:.1%}" for label, score in pairs))
        else:
            print(f"{name}: {row}")


if __name__ == "__main__":
    main()
