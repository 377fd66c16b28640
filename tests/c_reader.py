"""Runs a SavedModel through TensorFlow's C API alone, the loader that TensorFlow Serving uses: no Python TensorFlow.

    python c_reader.py LIBRARY_FOLDER VERSION REQUESTS.json IN.npz OUT.npz

REQUESTS.json is a list of `{"input": "name:0", "outputs": ["name:1", ...]}`; `IN.npz` holds `0`, `1`, ... for them, and
`OUT.npz` gets `0.0`, `0.1`, ...: strings as arrays of bytes objects, which NumPy pickles.
"""

import ctypes as c
import json
import sys
from pathlib import Path

import numpy as np

FLOAT, INT32, UINT8, STRING = 1, 3, 4, 7
DTYPES = {FLOAT: np.float32, INT32: np.int32, UINT8: np.uint8}


class Output(c.Structure):
    _fields_ = (("operation", c.c_void_p), ("index", c.c_int))


def load(folder):
    c.CDLL(f"{folder}/libtensorflow_framework.so.2", mode=c.RTLD_GLOBAL)
    tf = c.CDLL(f"{folder}/libtensorflow_cc.so.2", mode=c.RTLD_GLOBAL)
    pointers = "NewStatus NewGraph NewSessionOptions LoadSessionFromSavedModel GraphOperationByName AllocateTensor"
    for name in (*pointers.split(), "TensorData", "StringGetDataPointer"):
        getattr(tf, f"TF_{name}").restype = c.c_void_p
    tf.TF_Message.restype = c.c_char_p
    tf.TF_Dim.restype = c.c_int64
    tf.TF_StringGetSize.restype = c.c_size_t
    return tf


def main(folder, version, requests, given, taken):
    tf = load(folder)
    status = c.c_void_p(tf.TF_NewStatus())

    def check():
        if tf.TF_GetCode(status):
            sys.exit(tf.TF_Message(status).decode())

    graph = c.c_void_p(tf.TF_NewGraph())
    tags = (c.c_char_p * 1)(b"serve")
    options = c.c_void_p(tf.TF_NewSessionOptions())
    arguments = (options, None, version.encode(), tags, 1, graph, None, status)
    session = c.c_void_p(tf.TF_LoadSessionFromSavedModel(*arguments))
    check()

    def place(name):
        name, _, index = name.partition(":")
        operation = tf.TF_GraphOperationByName(graph, name.encode())
        assert operation, name
        return Output(operation, int(index))

    inputs, results = np.load(given, allow_pickle=True), {}
    for i, request in enumerate(json.loads(Path(requests).read_text())):
        outputs = request["outputs"]
        values = (c.c_void_p * len(outputs))()
        tensor = (c.c_void_p * 1)(tensor_of(tf, inputs[str(i)]))
        tf.TF_SessionRun(
            session,
            None,
            (Output * 1)(place(request["input"])),
            tensor,
            1,
            (Output * len(outputs))(*map(place, outputs)),
            values,
            len(outputs),
            None,
            0,
            None,
            status,
        )
        check()
        results |= {f"{i}.{j}": array_of(tf, c.c_void_p(value)) for j, value in enumerate(values)}
    np.savez(taken, **results)


def tensor_of(tf, array):
    dims = (c.c_int64 * array.ndim)(*array.shape)
    if array.dtype == object:
        tensor = tf.TF_AllocateTensor(STRING, dims, array.ndim, c.c_size_t(24 * array.size))
        data = tf.TF_TensorData(c.c_void_p(tensor))
        for i, text in enumerate(array.ravel()):
            string = c.c_void_p(data + 24 * i)
            tf.TF_StringInit(string)
            tf.TF_StringCopy(string, bytes(text), c.c_size_t(len(text)))
        return tensor
    kind = {np.dtype(value): key for key, value in DTYPES.items()}[array.dtype]
    array = np.ascontiguousarray(array)
    tensor = tf.TF_AllocateTensor(kind, dims, array.ndim, c.c_size_t(array.nbytes))
    c.memmove(tf.TF_TensorData(c.c_void_p(tensor)), array.ctypes.data, array.nbytes)
    return tensor


def array_of(tf, tensor):
    shape = tuple(tf.TF_Dim(tensor, i) for i in range(tf.TF_NumDims(tensor)))
    data, kind, size = tf.TF_TensorData(tensor), tf.TF_TensorType(tensor), int(np.prod(shape))
    if kind == STRING:
        strings = [c.c_void_p(data + 24 * i) for i in range(size)]
        texts = [c.string_at(tf.TF_StringGetDataPointer(s), tf.TF_StringGetSize(s)) for s in strings]
        array = np.empty(size, object)
        array[:] = texts
        return array.reshape(shape)
    dtype = np.dtype(DTYPES[kind])
    return np.frombuffer(c.string_at(data, size * dtype.itemsize), dtype).reshape(shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
