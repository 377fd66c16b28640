"""Files of weights by somebody who means harm: `python -m tests.hostile_files FOLDER` loads each and tells the outcome.

Run in a process of its own, where what Python does is watched. `SECRET` is a pipe that nobody writes to: whoever opens
it hangs. `MARK` appears if any code of a file runs.
"""

import contextlib
import io
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np

CASES = {}


def case(suffix):
    def add(function):
        CASES[function.__name__] = (suffix, function)
        return function

    return add


class Payload:
    def __init__(self, folder):
        self.mark = str(folder / "MARK")

    def __reduce__(self):
        return open, (self.mark, "w")


def code(folder):
    return f"open({str(folder / 'MARK')!r}, 'w')"


# ------------------------------------------------------------------------------------------------------- safetensors


def header(path, tensors, data=b"", length=None):
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@case(".safetensors")
def terabytes_declared(path, folder):
    header(path, {"a": tensor([10**6, 10**6], 0, 4 * 10**12)})


@case(".safetensors")
def endless_header(path, folder):
    header(path, b"{}", length=2**62)


@case(".safetensors")
def header_of_20_megabytes(path, folder):
    header(path, {f"tensor.{i:0>40}": tensor([0], 0, 0) for i in range(150_000)})


@case(".safetensors")
def overlapping(path, folder):
    header(path, {"a": tensor([4], 0, 16), "b": tensor([4], 0, 16)}, bytes(16))


@case(".safetensors")
def backward_offsets(path, folder):
    header(path, {"a": tensor([4], 16, 0)}, bytes(16))


@case(".safetensors")
def beyond_the_end(path, folder):
    header(path, {"a": tensor([4], 10**6, 10**6 + 16)}, bytes(16))


@case(".safetensors")
def negative_shape(path, folder):
    header(path, {"a": tensor([-4], 0, 16)}, bytes(16))


@case(".safetensors")
def shape_that_overflows(path, folder):
    header(path, {"a": tensor([2**62, 4], 0, 0)})


@case(".safetensors")
def unknown_dtype(path, folder):
    header(path, {"a": tensor([4], 0, 16, "OBJECT")}, bytes(16))


@case(".safetensors")
def deep_header(path, folder):
    header(path, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


@case(".safetensors")
def same_name_twice(path, folder):
    one = json.dumps(tensor([4], 0, 16))
    header(path, f'{{"a": {one}, "a": {one}}}'.encode(), bytes(16))


@case(".safetensors")
def pickle_by_another_name(path, folder):
    path.write_bytes(pickle.dumps(Payload(folder)))


@case(".safetensors")
def secret_by_a_link(path, folder):
    path.symlink_to(folder / "SECRET")


# --------------------------------------------------------------------------------------------------------------- npz


def npy(shape, data=b"", descr="'<f4'"):
    out = io.BytesIO()
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    out.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data)
    return out.getvalue()


def archive(path, members, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compress) as file:
        for name, content in members.items():
            file.writestr(name, content)


@case(".npz")
def objects(path, folder):
    np.savez(path, a=np.array([Payload(folder)], dtype=object))


@case(".npz")
def objects_in_a_record(path, folder):
    archive(path, {"a.npy": npy("(1,)", pickle.dumps(Payload(folder)), "[('a', '|O')]")})


@case(".npz")
def code_as_shape(path, folder):
    archive(path, {"a.npy": npy(f"({code(folder)},)")})


@case(".npz")
def code_as_dtype(path, folder):
    archive(path, {"a.npy": npy("(1,)", b"1234", code(folder))})


@case(".npz")
def a_million_millions(path, folder):
    archive(path, {"a.npy": npy(f"({10**12},)")})


@case(".npz")
def half_a_gigabyte_of_zeros(path, folder):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        member.write(npy(f"({2**27},)"))
        for _ in range(32):
            member.write(bytes(2**24))


@case(".npz")
def lies_about_its_size(path, folder):
    """Says 100 bytes in the directory, holds 200 MB."""
    archive(path, {"a.npy": npy(f"({5 * 10**7},)") + bytes(2 * 10**8)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 100)
    path.write_bytes(content)


@case(".npz")
def two_hundred_thousand_members(path, folder):
    archive(path, {f"{i}.npy": b"" for i in range(200_000)})


@case(".npz")
def climbs_out(path, folder):
    archive(path, {"../MARK": npy("(1,)", b"1234"), "/MARK.npy": npy("(1,)", b"1234")})


@case(".npz")
def encrypted(path, folder):
    archive(path, {"a.npy": npy("(1,)", b"1234")})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


# ------------------------------------------------------------------------------------------------------------- keras


def layer(name, **config):
    return {"module": "keras.layers", "class_name": name, "config": {"name": "x", **config}, "registered_name": None}


def keras_file(path, layers, weights=None, **members):
    if weights is None:
        weights = io.BytesIO()
        with h5py.File(weights, "w") as file:
            file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 16), "float32")
        weights = weights.getvalue()
    config = layers if isinstance(layers, (str, bytes)) else json.dumps({"config": {"layers": layers}})
    archive(path, {"config.json": config, "model.weights.h5": weights, **members}, zipfile.ZIP_DEFLATED)


@case(".keras")
def lambda_of_code(path, folder):
    keras_file(path, [layer("Lambda", function={"class_name": "__lambda__", "config": {"code": code(folder)}})])


@case(".keras")
def function_of_a_module(path, folder):
    inner = {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "exec"}
    keras_file(path, [layer("Lambda", function=inner, arguments={"source": code(folder)})])


@case(".keras")
def class_of_a_module(path, folder):
    keras_file(path, [{"module": "os", "class_name": "system", "config": {"name": f"touch {folder / 'MARK'}"}}])


@case(".keras")
def saved_model_inside(path, folder):
    keras_file(path, [layer("TFSMLayer", filepath=str(folder / "SECRET"), call_endpoint="serve")])


@case(".keras")
def vocabulary_elsewhere(path, folder):
    keras_file(path, [layer("StringLookup", vocabulary=str(folder / "SECRET"))])


@case(".keras")
def deep_config(path, folder):
    keras_file(path, "[" * 200_000 + "]" * 200_000)


@case(".keras")
def config_of_200_megabytes(path, folder):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("config.json", "w") as member:
        for _ in range(12):
            member.write(b" " * 2**24)


@case(".keras")
def asset_that_climbs_out(path, folder):
    keras_file(path, [layer("Conv2D")], **{"../MARK": "x", "assets/../../MARK": "x"})


# -------------------------------------------------------------------------------------------------------------- HDF5


def hdf5(path):
    return h5py.File(path, "w")


@case(".h5")
def terabytes_of_nothing(path, folder):
    with hdf5(path) as file:
        file.create_dataset("conv1_conv/a/kernel:0", (10**6, 10**6), "float32", chunks=(1000, 1000))


@case(".h5")
def compressed_zeros(path, folder):
    with hdf5(path) as file:
        file.create_dataset("a", (2**27,), "float32", chunks=(2**22,), compression="gzip", fillvalue=1)


@case(".h5")
def external_data(path, folder):
    with hdf5(path) as file:
        file.create_dataset("a", (1000,), "float32", external=[(str(folder / "SECRET"), 0, 4000)])


@case(".h5")
def external_link(path, folder):
    with hdf5(path) as file:
        file["conv1_conv"] = h5py.ExternalLink(str(folder / "SECRET"), "/")


@case(".h5")
def virtual_data(path, folder):
    layout = h5py.VirtualLayout((1000,), "float32")
    layout[:] = h5py.VirtualSource(str(folder / "SECRET"), "a", (1000,))
    with hdf5(path) as file:
        file.create_virtual_dataset("a", layout)


@case(".h5")
def group_in_itself(path, folder):
    with hdf5(path) as file:
        group = file.create_group("a")
        group["b"] = group


@case(".h5")
def many_ways_down(path, folder):
    """Twenty groups, each twice in the one above: a million paths."""
    with hdf5(path) as file:
        group = file
        for _ in range(20):
            inner = group.create_group("a")
            group["b"] = inner
            group = inner
        group["x"] = np.zeros(1, "float32")


@case(".h5")
def references(path, folder):
    with hdf5(path) as file:
        file.create_dataset("a", data=np.array([file.ref], dtype=h5py.ref_dtype))


@case(".h5")
def strings(path, folder):
    with hdf5(path) as file:
        file["a"] = ["x" * 1000] * 10


# ------------------------------------------------------------------------------------------------------------ a child


def main(folder):
    import keras_residual as kr
    from tests.tools import randomise

    entry = kr.models.find("ResNet20")
    victim = randomise(entry.build(entry.config.tiny()))
    kr.save_weights(victim, folder / "good.safetensors")
    for suffix in (".safetensors", ".npz", ".keras", ".h5"):  # what is imported late is imported now
        (folder / f"bad{suffix}").write_bytes(b"x" * 100)
        for name in (f"bad{suffix}", "good.safetensors"):
            with contextlib.suppress(ValueError):
                kr.load_weights(victim, folder / name)
    before, seen = [np.asarray(v).copy() for v in victim.weights], []

    def watch(event, arguments):
        if event in ("os.system", "os.exec", "subprocess.Popen", "os.posix_spawn") or event.startswith("socket."):
            seen.append(event)
        elif event == "open" and not str(arguments[0]).startswith((str(folder), sys.prefix, sys.base_prefix, "/proc")):
            seen.append(f"open {arguments[0]}")

    sys.addaudithook(watch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(folder.glob("hostile-*")):
        seen.clear()
        try:
            kr.load_weights(victim, path)
            error = "none"
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        same = all(np.array_equal(np.asarray(v), old) for v, old in zip(victim.weights, before, strict=True))
        record = {"error": error, "seen": list(seen), "megabytes": (now - peak) / 1024, "unchanged": same}
        peak = now
        print(json.dumps({"case": path.stem.removeprefix("hostile-"), **record}), flush=True)


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    main(Path(sys.argv[1]))
