"""Draw the pictures of the manual by running the real commands on scikit-learn's digits.

python docs/pictures.py            # all but the server's page, some minutes on two CPU cores
python docs/pictures.py --page     # the server's page, where Chromium and Selenium are installed
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import tempfile
import threading
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "pages" / "images"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EACH = 60  # images of each class


def digits(place: Path) -> None:
    """Write a folder per class of 32x32 images."""
    data = load_digits()
    for number, name in enumerate(NAMES):
        (place / name).mkdir(parents=True)
        for i, image in enumerate(data.images[data.target == number][:EACH]):
            picture = Image.fromarray((image * 15.9).astype("uint8"))
            picture.resize((32, 32), Image.Resampling.BICUBIC).save(place / name / f"{i:02}.png")


def run(command: str) -> str:
    """Run `keras-residual` and return what it prints."""
    from keras_residual.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(shlex.split(command)) == 0, command
    return printed.getvalue()


def terminal(command: str, name: str) -> None:
    """Run a command and draw it with its output as a terminal, in the reader's fonts."""
    console = Console(record=True, width=110, file=io.StringIO(), highlight=False)
    console.print(Text(f"$ keras-residual {command}", style="bold"))
    console.print(Text(run(command).rstrip()))
    drawn = re.sub(r"@font-face \{.*?\}\n?", "", console.export_svg(title="keras-residual"), flags=re.DOTALL)
    drawn = drawn.replace("Fira Code", "DejaVu Sans Mono")
    drawn = re.sub(r"terminal-\d+", "terminal", drawn)  # equal output, equal file
    drawn = re.sub(r' clip-path="[^"]*"', "", drawn)  # other fonts have longer descenders
    assert "http" not in drawn.replace("http://www.w3.org", "").replace("https://www.textualize.io", "")
    (IMAGES / f"{name}.svg").write_text(drawn, encoding="utf-8")


def shrink(source: Path, name: str, width: int = 1000) -> None:
    """Save a figure as a small PNG."""
    with Image.open(source) as picture:
        picture = picture.convert("RGB")
        if picture.width > width:
            picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        picture.quantize(128, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


def figures() -> None:
    """Fine-tune, inspect and predict, and keep what is drawn and printed."""
    digits(Path("photos"))
    terminal("finetune photos --model ResNet20 --weights none --epochs 12 --output runs/digits", "finetune")
    for name in ("curves", "confusion", "mistakes"):
        shrink(Path("runs/digits", f"{name}.png"), name)
    images = "photos/two/00.png photos/five/07.png photos/eight/03.png"
    terminal(f"predict runs/digits {images}", "predict")
    run(f"inspect runs/digits {images}")
    for name in ("gradients", "blocks", "maps"):
        shrink(Path("runs/digits/inspect", f"{name}.png"), name)


def page() -> None:
    """Show an image to the page of the local server, and take a picture of the answer."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    from keras_residual.serving import Server

    Image.fromarray((load_digits().images[42] * 15.9).astype("uint8")).resize((160, 160), 0).save("digit.png")
    ready = threading.Event()
    server = Server(ROOT / "saved_models" / "digits", rest_port=0, grpc_port=0)
    thread = threading.Thread(target=server.run, args=(ready.set,))
    thread.start()
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=720,980"):
        options.add_argument(option)
    try:
        assert ready.wait(60)
        browser = webdriver.Chrome(options=options)
        try:
            browser.get(f"http://127.0.0.1:{server.rest_port}/")
            browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(Path("digit.png").resolve()))
            WebDriverWait(browser, 30).until(lambda b: "%" in b.find_element(By.TAG_NAME, "body").text)
            browser.save_screenshot("serve.png")
        finally:
            browser.quit()
    finally:
        server.stop()
        thread.join()
    shrink(Path("serve.png"), "serve")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="the server's page")
    wanted = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = folder
        page() if wanted.page else figures()
        os.chdir(ROOT)
