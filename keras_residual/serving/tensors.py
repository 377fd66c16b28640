"""Conversion between TensorFlow Serving's JSON format and arrays."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from grpc import StatusCode

from keras_residual.serving.models import ServingError

__all__ = ["answer", "arrays", "examples", "parse"]


def parse(body: bytes) -> dict[str, Any]:
    """Parse the body of a request.

    Raises:
        ServingError: If the body is not a JSON object.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServingError(StatusCode.INVALID_ARGUMENT, f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise ServingError(StatusCode.INVALID_ARGUMENT, "The request must be a JSON object: { ... }")
    return request


def arrays(request: Mapping[str, Any], specs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the inputs of a predict request, in row format (`instances`) or column format (`inputs`), to arrays.

    Args:
        request: The parsed body.
        specs: `tf.TensorSpec` of each input of the signature, by name.

    Raises:
        ServingError: If the format is wrong, or if a value has the wrong type.
    """
    if ("instances" in request) == ("inputs" in request):
        raise ServingError(
            StatusCode.INVALID_ARGUMENT, "Exactly one of 'instances' and 'inputs' must be in the request"
        )
    only = next(iter(specs)) if len(specs) == 1 else ""
    if "inputs" in request:
        given = request["inputs"]
        if _is_named(given):  # other names are ignored, as in TensorFlow Serving
            if missing := [name for name in specs if name not in given]:
                raise ServingError(
                    StatusCode.INVALID_ARGUMENT, f"Missing named input: {', '.join(missing)} in 'inputs' object"
                )
            columns = {name: given[name] for name in specs}
        else:
            columns = {only: given}
    else:
        rows = request["instances"]
        if not isinstance(rows, list) or not rows:
            raise ServingError(StatusCode.INVALID_ARGUMENT, "'instances' must be a list with at least one element")
        if _is_named(rows[0]):
            if not all(_is_named(row) and set(row) == set(rows[0]) for row in rows):
                raise ServingError(StatusCode.INVALID_ARGUMENT, "All 'instances' must have the same inputs")
            columns = {name: [row[name] for row in rows] for name in rows[0]}
        else:
            columns = {only: rows}
    if "" in columns:
        raise ServingError(
            StatusCode.INVALID_ARGUMENT, f"The signature has several inputs, which must be named: {list(specs)}"
        )
    # Version.run reports unknown names.
    return {name: _array(name, value, specs[name]) if name in specs else value for name, value in columns.items()}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and set(value) != {"b64"}


def _array(name: str, value: Any, spec: Any) -> Any:
    wanted = spec.dtype
    try:
        if wanted == tf.string:
            return np.array(_bytes(value), object)
        array = np.array(value)
        if wanted.is_floating and array.dtype.kind in "iuf":
            return array.astype(wanted.as_numpy_dtype)
        if wanted.is_integer and array.dtype.kind in "iu":
            limits = np.iinfo(wanted.as_numpy_dtype)
            if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
                raise ValueError(f"values must be between {limits.min} and {limits.max}")
            return array.astype(wanted.as_numpy_dtype)
        if wanted == tf.bool and array.dtype == bool:
            return array
        if array.size == 0:
            return array.astype(wanted.as_numpy_dtype)
        raise ValueError(f"a value is not a {wanted.name}")
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        reason = str(error).partition("\n")[0]
        raise ServingError(
            StatusCode.INVALID_ARGUMENT, f'input "{name}" must be a {wanted.name} tensor: {reason}'
        ) from None


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(item) for item in value]
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        text = "".join(value["b64"].split())  # accept white space and missing padding, like TensorFlow Serving
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    raise ValueError('each value must be text or {"b64": "..."}')


def answer(outputs: Mapping[str, Any], by_row: bool) -> bytes:
    """Format outputs as a response body.

    The body has `predictions`, a list of rows, or `outputs`, the columns by name. The name of a single output is
    omitted.

    Raises:
        ServingError: If `by_row` is true and the outputs have different batch sizes.
    """
    plain = {name: _plain(name, value) for name, value in outputs.items()}
    if not by_row:
        return _dump({"outputs": plain if len(plain) > 1 else next(iter(plain.values()))})
    if len({value.shape[:1] for value in outputs.values()} - {()}) != 1:
        raise ServingError(
            StatusCode.INVALID_ARGUMENT, "The outputs have different batch sizes. Use 'inputs' instead of 'instances'"
        )
    if len(plain) == 1:
        return _dump({"predictions": next(iter(plain.values()))})
    return _dump({"predictions": [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]})


def _plain(name: str, value: Any) -> Any:
    if value.dtype != object:
        return value.tolist()

    def text(item: bytes) -> Any:
        # TensorFlow Serving encodes outputs whose names end in _bytes as base64
        return {"b64": base64.b64encode(item).decode()} if name.endswith("_bytes") else item.decode("utf-8", "replace")

    return np.vectorize(text, otypes=[object])(value).tolist() if value.size else value.tolist()


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def examples(request: Mapping[str, Any]) -> list[bytes]:
    """Convert a classify request to serialized `tf.Example`s.

    Raises:
        ServingError: If the request has no examples, or if a feature is neither numbers nor text.
    """
    rows, context = request.get("examples"), request.get("context", {})
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in [*rows, context]):
        raise ServingError(
            StatusCode.INVALID_ARGUMENT, "'examples' must be a list of objects, with at least one element"
        )
    return [_example({**context, **row}).SerializeToString() for row in rows]


def _example(row: Mapping[str, Any]) -> tf.train.Example:
    features = {}
    for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        try:
            if all(isinstance(item, int) for item in values):  # true and false are 1 and 0
                features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=map(int, values)))
            elif all(isinstance(item, float) for item in values):  # like TensorFlow Serving: 1.0, not 1
                features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
            else:
                features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=_bytes(values)))
        except (ValueError, TypeError) as error:
            raise ServingError(StatusCode.INVALID_ARGUMENT, f'feature "{name}": {error}') from None
    return tf.train.Example(features=tf.train.Features(feature=features))
