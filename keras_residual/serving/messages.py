"""Responses that REST and gRPC share, as TensorFlow Serving's protobuf messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from grpc import StatusCode
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, get_model_status_pb2

from keras_residual.serving.models import Model, Models, ServingError, Version, input_specs

__all__ = ["classification", "metadata", "status"]


def status(models: Models, name: str, number: int | None) -> Any:
    """Return a `GetModelStatusResponse` for all versions of a model or for one of them.

    Raises:
        ServingError: If there is no such model or version.
    """
    model = models.models.get(name)
    versions = [] if model is None else [v for v in model.all() if number in (None, v.number)]
    if not versions:
        what = "any versions" if number is None else f"version {number}"
        raise ServingError(StatusCode.NOT_FOUND, f"Could not find {what} of model {name}")
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in versions:
        entry = response.model_version_status.add(version=version.number, state=int(version.state))
        entry.status.error_code = 13 if version.error else 0  # INTERNAL, OK
        entry.status.error_message = version.error
    return response


def metadata(model: Model, version: Version) -> Any:
    """Return a `GetModelMetadataResponse` with the signatures of a version."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = model.name
    response.model_spec.version.value = version.number
    response.metadata["signature_def"].Pack(signatures(version))
    return response


def signatures(version: Version) -> Any:
    """Return the signatures of a version as a `SignatureDefMap`."""
    found = get_model_metadata_pb2.SignatureDefMap()
    for name, function in version.saved.signatures.items():
        signature = found.signature_def[name]
        signature.method_name = "tensorflow/serving/predict"
        for key, spec in input_specs(function).items():
            signature.inputs[key].CopyFrom(_info(f"{name}_{key}:0", spec))
        for i, (key, spec) in enumerate(sorted(function.structured_outputs.items())):
            signature.outputs[key].CopyFrom(_info(f"StatefulPartitionedCall:{i}", spec))
    return found


def _info(name: str, spec: Any) -> Any:
    return meta_graph_pb2.TensorInfo(name=name, dtype=spec.dtype.as_datatype_enum, tensor_shape=spec.shape.as_proto())


def classification(version: Version, signature: str, examples: Sequence[bytes]) -> Any:
    """Classify serialized `tf.Example`s and return their labels and scores as a `ClassificationResult`.

    Raises:
        ServingError: If the signature is not a classification signature.
    """
    specs, outputs = input_specs(version.signature(signature)), version.signature(signature).structured_outputs
    if list(specs) != ["inputs"] or specs["inputs"].dtype != tf.string or not {"classes", "scores"} <= set(outputs):
        raise ServingError(
            StatusCode.INVALID_ARGUMENT,
            "The signature must be a classification signature, which maps serialized examples to "
            f'"classes" and "scores"; got "{signature or "serving_default"}".',
        )
    found = version.run(signature, {"inputs": np.array(examples, object)})
    if found["classes"].dtype != object:
        raise ServingError(StatusCode.INVALID_ARGUMENT, '"classes" must be strings.')
    result = classification_pb2.ClassificationResult()
    for labels, scores in zip(found["classes"], found["scores"], strict=True):
        row = result.classifications.add()
        for label, score in zip(labels, scores, strict=True):
            row.classes.add(label=label.decode("utf-8", "replace"), score=float(score))
    return result
