"""Tables and figures of a run: whatever names are, and however many, nothing fails, and all of it can be read."""

import csv
import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.text import Text
from PIL import Image

import keras_residual as kr
from keras_residual import figures, io, metrics, reports
from keras_residual.cli import main
from keras_residual.diagnostics.maps import ImageMaps
from keras_residual.diagnostics.result import Result
from keras_residual.weights import Preprocess

# A name, and how it is written.
NAMES = {
    r"US$10\frac$": r"US$10\frac$",
    "a\nb": r"a\nb",
    "中文": "中文",
    "عربي": "عربي",
    "\udcff": r"\xff",
    os.fsdecode(b"caf\xe9"): r"caf\xe9",
    "\udce4\udcb8\udcad": "中",  # as Python reads a file name in the C locale
    "x_1^2": "x_1^2",
    "^_^ $5 $6": "^_^ $5 $6",
    "हिन्दी": "हिन्दी",
    "\x1b[31m\u202e\u2028\r": r"\x1b[31m\u202e\u2028\r",
    chr(0xD800): r"\ud800",
    "n" * 300: "n" * 300,
    "👩‍🔬 e\u0301": "👩‍🔬 e\u0301",
}


@pytest.mark.parametrize("name", NAMES)
def test_literal(name):
    assert io.literal(name) == NAMES[name]
    assert io.literal(io.literal(name)) == NAMES[name]
    assert "\n" not in io.literal(name)
    io.literal(name).encode("utf-8")


def test_tables_and_json_hold_every_name(tmp_path):
    io.write_table(tmp_path / "t.csv", ("name", "n"), ((name, 1) for name in NAMES))
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1:] == [[written, "1"] for written in NAMES.values()]
    assert len((tmp_path / "t.csv").read_text("utf-8").splitlines()) == len(NAMES) + 1
    io.write_json(tmp_path / "t.json", list(NAMES))
    assert json.loads((tmp_path / "t.json").read_text("utf-8")) == list(NAMES)  # the names themselves


def test_labels_txt_has_a_line_for_each_class(tmp_path):
    model = kr.ResNet20(classes=len(NAMES), input_shape=(16, 16, 3), classifier_activation=None)
    kr.Classifier(model, Preprocess((16, 16)), tuple(NAMES), "ResNet20").save(tmp_path)
    assert (tmp_path / "labels.txt").read_text("utf-8").split("\n") == [*NAMES.values(), ""]
    assert kr.Classifier.load(tmp_path).labels == tuple(NAMES)


# ------------------------------------------------------------------------------------------------------------- figures


def drawn(figure):
    """The texts of a figure as it is drawn."""
    figure.canvas.draw()
    return [text for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture
def saved(monkeypatch):
    """The figures that are written."""
    found, save = [], figures.save

    def keep(figure, path):
        save(figure, path)
        found.append(figure)

    monkeypatch.setattr(figures, "save", keep)
    return found


def answers(classes, count=2, seed=0):
    generator = np.random.default_rng(seed)
    truth = np.repeat(np.arange(classes), count)
    guesses = np.where(generator.random(len(truth)) < 0.5, truth, generator.integers(0, min(classes, 40), len(truth)))
    sure = generator.random(len(truth))
    return metrics.Answers(truth, guesses, sure, np.where(truth == guesses, sure, sure / 2), truth % 7, classes)


class Examples:
    """Images without content, of files with any names."""

    def __init__(self, names):
        self.names = names

    def __getitem__(self, index):
        return np.full((9, 12, 3), index % 255, "uint8"), 0


def report(folder, labels, count=2, **options):
    found = answers(len(labels), count)
    examples = Examples([f"{labels[i]}.png" for i in found.truth])
    return reports.write_report(SimpleNamespace(labels=labels), examples, folder, majority=0, answers=found, **options)


@pytest.mark.long
def test_every_figure_draws_every_name(saved, tmp_path):
    """Without a warning: missing glyphs are one."""
    labels = list(NAMES)
    many = [*labels, *(f"class {i}" for i in range(100))]
    title, found = " ".join(name[:20] for name in NAMES), answers(len(many), 9)
    history = {"loss": [1.0, 0.5], "accuracy": [0.5, 0.6], "val_loss": [1, 0.7], "val_accuracy": [0.4, 0.5]}
    image = np.zeros((len(NAMES), 8, 8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report(tmp_path, labels, 9)
        figures.draw_confusion(found.truth, found.guesses, many, tmp_path / "confusion.png", title)
        figures.draw_curves(history, tmp_path / "curves.png", title)
        rows = [{"image": name, "class": name, "probability": 0.5} for name in NAMES]
        ImageMaps(title, rows, (), np.zeros((len(NAMES), 8, 8)), image).plot(tmp_path / "maps.png")
    matrix, mistakes, frequent, curves, maps = saved
    texts = [[text.get_text() for text in drawn(figure)] for figure in (matrix, mistakes, frequent, curves, maps)]
    for literal in (r"US$10\frac$", r"a\nb", r"\xff", r"caf\xe9", "x_1^2", "^_^ $5 $6", "عربي"):
        for other in (texts[0], *texts[2:]):
            assert any(literal in text for text in other)
    captions = [text.partition("predicted: ")[2].partition(" (")[0] for text in texts[1]]
    assert {r"US$10\frac$", r"a\nb", r"caf\xe9"} & set(captions)
    for figure in (matrix, frequent):
        assert not any(text.get_parse_math() for text in figure.axes[0].get_yticklabels())


def test_powers_of_ten_are_still_drawn_as_such():
    figure, axes = figures.canvas(1, 1, (4, 3))
    axes[0, 0].plot([1e-3, 1e3])
    axes[0, 0].set_yscale("log")
    figures.as_written(figure)
    ticks = [text for text in drawn(figure) if "mathdefault" in text.get_text()]
    assert ticks
    assert all(text.get_parse_math() for text in ticks)


@pytest.fixture
def han(tmp_path):
    """A font that has 中 and nothing else."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "zhong"])
    font.setupCharacterMap({ord("中"): "zhong"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "zhong": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "zhong": (1000, 100)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Only Zhong", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "han.ttf")
    before = list(font_manager.fontManager.ttflist)
    yield tmp_path / "han.ttf"
    font_manager.fontManager.ttflist = before
    figures._coverage.cache_clear()


def test_fonts_are_found_by_what_they_can_draw(han):
    def texts():
        figures._coverage.cache_clear()
        figure, axes = figures.canvas(1, 1, (4, 3))
        axes[0, 0].set_yticks([0, 1], ["中", "龘"])
        figures.as_written(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return [text for text in drawn(figure) if text in axes[0, 0].get_yticklabels()]

    have = {font.name for font in font_manager.fontManager.ttflist}
    if not any("CJK" in name or "Hei" in name or "Ming" in name for name in have):
        assert [text.get_text() for text in texts()] == [r"\u4e2d", r"\u9f98"]
    font_manager.fontManager.addfont(han)
    first, second = texts()
    assert first.get_text() == "中"
    assert len(first.get_fontfamily()) > 1
    assert second.get_text() in ("龘", r"\u9f98")


def test_a_font_installed_after_matplotlib_is_found(han, monkeypatch):
    """Its list of fonts is from its first import on this machine."""
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(han), str(han.with_name("no.ttf"))])
    kept = [font for font in font_manager.fontManager.ttflist if figures._lacking(font.fname, frozenset("中"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", kept)
    figures._coverage.cache_clear()
    assert figures._coverage(frozenset("中")) == (("Only Zhong",), frozenset())


def test_labels_that_escapes_make_long_are_cut():
    figure, axes = figures.canvas(1, 1, (4, 3))
    axes[0, 0].set_yticks([0, 1], ["\U0010fffd" * 18, "x" * 40])  # no font has a glyph for the first
    figures.as_written(figure)
    assert [len(label.get_text()) for label in axes[0, 0].get_yticklabels()] == [24, 40]


# -------------------------------------------------------------------------------------------------------- many classes


@pytest.mark.parametrize(("classes", "matrix"), [(60, True), (61, False)])
def test_a_confusion_matrix_has_at_most_60_classes(classes, matrix, saved, tmp_path):
    report(tmp_path, [f"class {i}" for i in range(classes)])
    figure = saved[0]
    assert bool(figure.axes[0].images) == matrix
    assert max(figure.get_size_inches()) < 15
    if not matrix:
        names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert len(names) == 30
        assert all(" → " in name for name in names)


def test_a_confusion_matrix_has_shares_counts_and_totals(saved, tmp_path):
    """Row by row: a rare class is as visible as a frequent one."""
    truth, guesses = np.repeat([0, 0, 1], [90, 10, 4]), np.repeat([0, 1, 1], [90, 10, 4])
    figures.draw_confusion(truth, guesses, ["frequent", "rare"], tmp_path / "confusion.png", "title")
    axes = saved[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["90%", "90", "10%", "10", "100%", "4"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["frequent (100)", "rare (4)"]
    assert [label.get_text().split() for label in axes.get_xticklabels()] == [["frequent", "(90)"], ["rare", "(14)"]]
    assert np.asarray(axes.images[0].get_array()).max() == 100
    assert len(axes.images) == 1, "one colour scale"


@pytest.mark.parametrize(("count", "columns"), [(0, 1), (1, 1), (4, 4), (6, 6), (7, 6)])
def test_few_mistakes_leave_no_blank_canvas(count, columns, saved, tmp_path):
    images = [np.full((8, 8, 3), 99.6, "float32")] * count  # matplotlib would take floats for 0..1
    figures.draw_mistakes(images, ["caption"] * count, tmp_path / "mistakes.png", "title")
    assert saved[0].axes[0].get_gridspec().ncols == columns
    assert all((axes.images[0].get_array() == 100).all() for axes in saved[0].axes[:count])


def test_curves_show_the_baseline_and_the_learning_rate(saved, tmp_path):
    history = {"loss": [2.0, 1.0], "accuracy": [0.9, 0.95], "learning_rate": [1e-3, 1e-4]}
    figures.draw_curves(history, tmp_path / "curves.png", "title", baseline=("logistic regression", 0.62))
    _, accuracy, rate = saved[0].axes
    assert "logistic regression" in [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert accuracy.get_ylim()[0] < 0.62, "the baseline is on the figure"
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), history["learning_rate"])


@pytest.mark.parametrize(
    ("wrong", "drawn", "title"),
    [
        (0, 0, "No mistakes in 1,200 test images"),
        (1, 1, "The only mistake of 1,200 test images"),
        (9, 9, "All 9 mistakes of 1,200 test images"),
        (1_100, 24, "The 24 worst of 1,100 mistakes in 1,200 test images"),
    ],
)
def test_title_of_the_mistakes(wrong, drawn, title):
    assert reports._mistakes_title(wrong, drawn, 1_200, "test") == title


def test_confusions():
    truth, guesses = np.array([0, 0, 0, 1, 2, 2, 2]), np.array([1, 1, 0, 2, 0, 0, 0])
    assert metrics.confusions(truth, guesses) == [(3, 2, 0), (2, 0, 1), (1, 1, 2)]
    assert metrics.confusions(truth, truth) == []


@pytest.mark.slow
def test_a_report_on_8000_classes_is_linear(tmp_path):
    """A matrix of them takes 512 MB, and its figure 6.5 GB."""
    labels = [f"class {i}" for i in range(8_000)]
    tracemalloc.start()
    measured = report(tmp_path, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert measured["images"] == 16_000
    for name, rows in (("predictions.csv", 16_001), ("classes.csv", 8_001)):
        assert len((tmp_path / name).read_text().splitlines()) == rows
    assert {"confusion.png", "mistakes.png", "metrics.json"} <= set(os.listdir(tmp_path))


def test_answers_do_not_keep_all_probabilities():
    classes, count = 2_000, 2_000  # 16 MB of probabilities
    inputs = keras.Input((2, 2, 3))
    outputs = keras.layers.Dense(classes)(keras.layers.Flatten()(inputs))
    labels = tuple(map(str, range(classes)))
    classifier = kr.Classifier(keras.Model(inputs, outputs), Preprocess((2, 2), crop=1.0), labels, "ResNet20")
    x = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3)).astype("uint8")
    examples = kr.data.load((x, np.arange(count)), validation=0.0).train
    expected = metrics.Answers.of(classifier.probabilities(examples), examples.labels)
    tracemalloc.start()
    found = classifier.answers(examples)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6
    np.testing.assert_array_equal(found.guesses, expected.guesses)
    np.testing.assert_array_equal(found.likelier, expected.likelier)
    assert found.measure(0) == expected.measure(0)


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 6.5 GiB"), ValueError("ParseException"), OSError("x")]
)
def test_a_picture_that_fails_is_one_warning_and_one_missing_picture(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(figures, "draw_confusion", fail)
    with pytest.warns(
        UserWarning, match=rf"^Could not write confusion\.png \({type(error).__name__}: {error}\)"
    ) as seen:
        measured = report(tmp_path, ["a", "b", "c"], 9)
    assert len(seen) == 1
    assert json.loads((tmp_path / "metrics.json").read_text()) == measured
    assert sorted(os.listdir(tmp_path)) == [
        *("classes.csv", "confusions.csv", "metrics.json", "mistakes.png", "predictions.csv")
    ]


def test_an_interruption_is_no_failure():
    with pytest.raises(KeyboardInterrupt), reports.attempt("a.png"):
        raise KeyboardInterrupt


def test_tables_come_before_pictures(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "draw_confusion", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report(tmp_path, ["a", "b", "c"], 9)
    assert {"metrics.json", "predictions.csv", "classes.csv", "confusions.csv"} == set(os.listdir(tmp_path))


# --------------------------------------------------------------------------------------------------- from the outside


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with odd names, and images: bytes that are not UTF-8, a formula, a line feed; one file is no image."""
    place = tmp_path_factory.mktemp("odd")
    generator = np.random.default_rng(0)
    for name in (r"US$10\frac$", "a\nb", os.fsdecode(b"caf\xe9"), "中文"):
        (place / "photos" / name).mkdir(parents=True)
        for i in range(2):
            pixels = generator.integers(0, 256, (20, 20, 3)).astype("uint8")
            Image.fromarray(pixels).save(place / "photos" / name / f"{name}{i}.png")
    (place / "photos" / "中文" / "broken.png").write_bytes(b"no image")
    model = kr.ResNet20(input_shape=(16, 16, 3), classes=4, classifier_activation=None)
    labels = (r"US$10\frac$", r"a\nb", r"caf\xe9", "中文")
    kr.Classifier(model, Preprocess((16, 16)), labels, "ResNet20").save(place / "run")
    return place


def test_evaluate_says_what_it_left_out(run):
    classifier = kr.Classifier.load(run / "run")
    with pytest.warns(UserWarning, match=r"Skipped 1 file: 中文/broken\.png") as seen:
        found = classifier.evaluate(run / "photos")
    assert seen[0].filename == __file__
    assert (found["images"], found["skipped"]) == (8, 1)
    (run / "photos" / "中文" / "broken.png").rename(run / "aside.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classifier.evaluate(run / "photos")["skipped"] == 0
    (run / "aside.png").rename(run / "photos" / "中文" / "broken.png")


def test_evaluate_from_the_command_line(run, capsys):
    arguments = ["evaluate", str(run / "run"), str(run / "photos"), "--output", str(run / "report")]
    assert main(arguments) == 0
    seen = capsys.readouterr()
    assert "broken.png" in seen.err
    assert "skipped              1" in seen.out
    assert json.loads((run / "report" / "metrics.json").read_text())["skipped"] == 1
    assert {"confusion.png", "mistakes.png", "predictions.csv"} <= set(os.listdir(run / "report"))


@pytest.mark.slow
def test_inspect_from_the_command_line(run, capsys):
    images = [str(path) for path in sorted((run / "photos").rglob("*[01].png"))]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Could not write|Glyph")
        assert main(["inspect", str(run / "run"), *images, "--data", str(run / "photos"), "--count", "2"]) == 0
    assert "broken.png" in capsys.readouterr().out
    assert (run / "run" / "inspect" / "maps.png").exists()


def test_inspect_survives_a_picture_that_fails(run, monkeypatch, capsys):
    def plot(self, path):
        raise MemoryError("no room")

    monkeypatch.setattr(Result, "plot", plot)
    with pytest.warns(UserWarning, match=r"Could not write skips\.png \(MemoryError: no room\)"):
        assert main(["inspect", str(run / "run"), "--output", str(run / "inspect")]) == 0
    assert {path.name for path in (run / "inspect").glob("*.*") if path.name[0] != "."} == {"skips.csv"}
    out = capsys.readouterr().out
    assert "skips.csv" in out
    assert "skips.png" not in out


@pytest.mark.slow
def test_a_terminal_without_unicode(run):
    """No name ends a command: what the encoding lacks is escaped."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}
    for command, data in (("evaluate", []), ("predict", []), ("inspect", ["--data"])):
        arguments = [command, str(run / "run"), *data, str(run / "photos")]
        done = subprocess.run(
            [sys.executable, "-m", "keras_residual.cli", *arguments], env=environment, capture_output=True, check=False
        )
        assert done.returncode == (1 if command == "predict" else 0), done.stderr.decode(errors="replace")[-2000:]
        assert b"Traceback" not in done.stderr
        assert b"\\u4e2d\\u6587" in done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "cp1252"])
def test_say_prints_every_name(encoding, monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        for name in NAMES:
            io.say(name)
    assert rb"\udcff" in (tmp_path / "out").read_bytes()
