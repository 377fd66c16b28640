"""The errors on the manual's page "Troubleshooting": each is provoked, and its message stands on the page.

`python -m tests.mistakes` writes the messages anew where they stand, between the lines that name them.
"""

import contextlib
import io
import os
import re
import socket
import tempfile
import warnings
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "howto" / "troubleshooting.md"
PLACE = re.compile(r"(<!-- error (\w+) -->\n\n)```{ .text .wrap }\n(.*?)\n```", re.DOTALL)


def command(*words):
    """Run `keras-residual` and return what it prints to standard error."""
    from keras_residual.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
        assert main(list(words)) in (1, 2), words
    return printed.getvalue()


def raised(call):
    """Call a function and return the message of the error that it raises."""
    try:
        call()
    except Exception as error:
        return str(error)
    raise AssertionError("this is no mistake any more")


def unknown_network():
    return command("finetune", "photos", "--model", "ResNet19")


def no_such_folder():
    return command("finetune", "photo", "--model", "ResNet20", "--weights", "none")


def no_class_folders():
    return command("finetune", "photos/daisy", "--model", "ResNet20", "--weights", "none")


def class_without_images():
    Path("spoiled/daisy").mkdir(parents=True)
    Path("spoiled/rose").mkdir()
    Path("spoiled/daisy/one.jpg").write_text("no image")
    Path("spoiled/rose/two.jpg").write_bytes(next(Path("photos/rose").iterdir()).read_bytes())
    return command("finetune", "spoiled", "--model", "ResNet20", "--weights", "none")


def one_image_per_class():
    for place in (next(Path("photos/rose").iterdir()), next(Path("photos/daisy").iterdir())):
        Path("single", place.parent.name).mkdir(parents=True)
        Path("single", place.parent.name, place.name).write_bytes(place.read_bytes())
    return command("finetune", "single", "--model", "ResNet20", "--weights", "none")


def columns_of_a_table():
    Path("table.csv").write_text("file,class\na.jpg,daisy\n")
    return command("finetune", "table.csv", "--model", "ResNet20", "--weights", "none")


def encoding_of_a_table():
    Path("excel.csv").write_bytes("path,label\na.jpg,Blüte\n".encode("cp1252"))
    return command("finetune", "excel.csv", "--model", "ResNet20", "--weights", "none")


def no_default_checkpoint():
    return command("finetune", "photos", "--model", "ResNet20")


def unknown_architecture():
    return command("finetune", "photos", "--weights", "timm/efficientnet_b0.ra_in1k")


def no_network():
    import huggingface_hub.constants as constants

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    cache, constants.HF_HUB_CACHE = constants.HF_HUB_CACHE, str(Path("cache").resolve())
    try:
        return command("finetune", "photos")
    finally:
        constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = offline, cache


def another_run():
    import keras_residual.finetuning as finetuning

    def killed(plan, run, scope, **_):
        (run.path / "training").mkdir()
        (run.path / "training" / "step-0000000001.safetensors").touch()
        raise KeyboardInterrupt

    train, finetuning._train = finetuning._train, killed
    words = ("finetune", "photos", "--model", "ResNet20", "--weights", "none", "--output", "runs/other")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from keras_residual.cli import main

            assert main(list(words)) == 130
    finally:
        finetuning._train = train
    return command(*words, "--seed", "1")


def directory_with_other_files():
    Path("documents").mkdir()
    Path("documents/letter.txt").touch()
    return command("finetune", "photos", "--model", "ResNet20", "--weights", "none", "--output", "documents")


def unfinished_run():
    Path("runs/begun").mkdir(parents=True)
    return command("export", "runs/begun", "saved_models/begun")


def unknown_class():
    import keras_residual as kr

    model = kr.ResNet20(classes=2, classifier_activation=None)
    kr.Classifier(model, kr.weights.Preprocess((32, 32)), ("daisy", "rose"), "ResNet20").save("runs/two")
    return command("evaluate", "runs/two", "photos")


def address_instead_of_a_file():
    return command("predict", "runs/two", "https://example.com/cat.jpg")


def pixels_of_0_to_1():
    import keras_residual as kr

    image = np.linspace(0, 1, 32 * 32 * 3).reshape(32, 32, 3)
    return raised(lambda: kr.Classifier.load("runs/two").predict(image))


def weights_that_do_not_fit():
    import keras_residual as kr

    kr.save_weights(kr.ResNet20(classes=3), "three.safetensors")
    return raised(lambda: kr.load_weights(kr.ResNet20(classes=10), "three.safetensors"))


def page_instead_of_weights():
    import keras_residual as kr

    Path("weights.safetensors").write_text("<!doctype html><html><title>Log in</title></html>")
    return raised(lambda: kr.load_weights(kr.ResNet20(classes=10), "weights.safetensors"))


def too_small_an_input():
    import keras_residual as kr

    return raised(lambda: kr.ResNet18(input_shape=(16, 16, 3), classes=10))


def channels_first():
    import keras_residual as kr

    return raised(lambda: kr.ResNet18(input_shape=(3, 224, 224)))


def size_of_a_transformer():
    import keras_residual as kr

    return raised(lambda: kr.ViTTiny16(input_shape=(100, 100, 3)))


def sides_that_do_not_fit():
    import keras

    from keras_residual import blocks

    x = keras.Input((32, 32, 8))
    branch = blocks.conv_norm(x, 16, 3, stride=2, name="conv")
    return raised(lambda: blocks.residual(x, branch, name="block"))


def port_in_use():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        digits = Path(__file__).parents[1] / "saved_models" / "digits"
        return command("serve", str(digits), "--rest-port", port).replace(port, "8501")


MISTAKES = {
    function.__name__: function
    for function in (
        unknown_network,
        no_such_folder,
        no_class_folders,
        class_without_images,
        one_image_per_class,
        columns_of_a_table,
        encoding_of_a_table,
        no_default_checkpoint,
        unknown_architecture,
        no_network,
        another_run,
        directory_with_other_files,
        unfinished_run,
        unknown_class,
        address_instead_of_a_file,
        pixels_of_0_to_1,
        weights_that_do_not_fit,
        page_instead_of_weights,
        too_small_an_input,
        channels_first,
        size_of_a_transformer,
        sides_that_do_not_fit,
        port_in_use,
    )
}


def messages():
    """Provoke every mistake in the present directory, which has `photos/`, and return the messages by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: provoke().strip() for name, provoke in MISTAKES.items()}


def with_messages(text, found):
    """The page with every message in its place."""
    return PLACE.sub(lambda place: f"{place[1]}```{{ .text .wrap }}\n{found[place[2]]}\n```", text)


if __name__ == "__main__":
    from tests.manual import photos

    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    os.chdir(tempfile.mkdtemp())
    photos(Path("photos"))
    page = with_messages(PAGE.read_text(encoding="utf-8"), messages())
    PAGE.write_text(page, encoding="utf-8")
