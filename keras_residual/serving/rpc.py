"""TensorFlow Serving's gRPC API: PredictionService and ModelService, with the official messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_residual.serving import messages
from keras_residual.serving.models import Models, ServingError, Version

__all__ = ["server"]


def server(models: Models, pool: ThreadPoolExecutor, max_bytes: int) -> grpc.Server:
    """Create a gRPC server without starting it or adding a port.

    Args:
        models: The models to serve.
        pool: Threads that process the requests.
        max_bytes: Largest accepted message in bytes.
    """
    options = [("grpc.max_receive_message_length", max_bytes), ("grpc.max_send_message_length", -1)]
    # Do not share a port with another process.
    made = grpc.server(pool, options=[*options, ("grpc.so_reuseport", 0)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(models, max_bytes), made)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(models), made)
    return made


def _with_grpc_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """Convert each `ServingError` of a method to a gRPC error."""

    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request)
        except ServingError as error:
            return context.abort(error.code, error.message)

    return answer


def _check(tensor: Any, max_bytes: int) -> None:
    """Check a tensor's size before decoding it, since a short message can describe a huge tensor of equal values.

    Raises:
        ValueError: If the tensor is larger than the largest accepted message, or if its shape is invalid.
    """
    sizes, dtype = [dim.size for dim in tensor.tensor_shape.dim], tf.as_dtype(tensor.dtype)
    count = math.prod(sizes)
    if min(sizes, default=0) < 0 or tensor.tensor_shape.unknown_rank:
        raise ValueError(f"its shape is {sizes}")
    if dtype == tf.string and len(tensor.string_val) != count:
        raise ValueError(f"{len(tensor.string_val)} strings for the shape {sizes}")
    if count * dtype.size > max_bytes:
        raise ValueError(f"{count * dtype.size:,} bytes, more than the limit of {max_bytes:,}")


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: Models, max_bytes: int) -> None:
        self.models, self.max_bytes = models, max_bytes

    @_with_grpc_errors
    def Predict(self, request: Any) -> Any:
        inputs = {}
        for name, tensor in request.inputs.items():
            try:
                _check(tensor, self.max_bytes)
                inputs[name] = tf.make_ndarray(tensor)
            except (TypeError, ValueError) as error:
                raise ServingError(
                    grpc.StatusCode.INVALID_ARGUMENT, f'input "{name}" is not a valid tensor: {error}'
                ) from None
        with _hold_version(self.models, request.model_spec) as version:
            outputs = version.run(request.model_spec.signature_name, inputs)
            response = predict_pb2.PredictResponse(model_spec=_spec(request, version))
        for name in request.output_filter or outputs:
            if name not in outputs:
                raise ServingError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f'output tensor alias not found in signature: "{name}". Available outputs: '
                    f"{', '.join(sorted(outputs))}.",
                )
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return response

    @_with_grpc_errors
    def Classify(self, request: Any) -> Any:
        given = request.input
        if given.WhichOneof("kind") == "example_list_with_context":
            rows = []
            for example in given.example_list_with_context.examples:
                merged = tf.train.Example.FromString(given.example_list_with_context.context.SerializeToString())
                merged.MergeFrom(example)
                rows.append(merged.SerializeToString())
        else:
            rows = [example.SerializeToString() for example in given.example_list.examples]
        if not rows:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "Input is empty")
        with _hold_version(self.models, request.model_spec) as version:
            result = messages.classification(version, request.model_spec.signature_name, rows)
            return classification_pb2.ClassificationResponse(result=result, model_spec=_spec(request, version))

    @_with_grpc_errors
    def GetModelMetadata(self, request: Any) -> Any:
        unknown = set(request.metadata_field) - {"signature_def"}
        if unknown or not request.metadata_field:
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT, f'metadata_field must be "signature_def"; got {sorted(unknown)}'
            )
        with _hold_version(self.models, request.model_spec) as version:
            return messages.metadata(self.models[request.model_spec.name], version)

    @_with_grpc_errors
    def Regress(self, request: Any) -> Any:
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "Expected a regression signature; there is none.")

    @_with_grpc_errors
    def MultiInference(self, request: Any) -> Any:
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, "MultiInference is not supported; use TensorFlow Serving.")


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: Models) -> None:
        self.models = models

    @_with_grpc_errors
    def GetModelStatus(self, request: Any) -> Any:
        return messages.status(self.models, request.model_spec.name, _number(request.model_spec))

    @_with_grpc_errors
    def HandleReloadConfigRequest(self, request: Any) -> Any:
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            "Reloading the configuration is not supported; models come from the directory.",
        )


def _number(spec: Any) -> int | None:
    if spec.WhichOneof("version_choice") == "version_label":
        raise ServingError(
            grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.version_label}"
        )
    return spec.version.value or None


@contextmanager
def _hold_version(models: Models, spec: Any) -> Iterator[Version]:
    if not spec.name:
        raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
    with models[spec.name].hold(_number(spec)) as version:
        yield version


def _spec(request: Any, version: Version) -> Any:
    signature = request.model_spec.signature_name or "serving_default"
    spec = type(request.model_spec)(name=request.model_spec.name, signature_name=signature)
    spec.version.value = version.number
    return spec
