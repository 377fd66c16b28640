"""Tests of the page at `/` in a headless browser."""

import base64
import shutil

import numpy as np
import pytest
from PIL import Image

import keras_residual as kr

pytest.importorskip("tensorflow_serving.apis")
pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from .test_serving import LABELS, colours, prepare, running

DROP = """
const bytes = Uint8Array.from(atob(arguments[1]), c => c.charCodeAt(0));
const data = new DataTransfer();
for (const name of ["dropped.png", "another.png"]) data.items.add(new File([bytes], name, {type: "image/png"}));
arguments[0].dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
"""


@pytest.fixture
def browser():
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("there is no chromedriver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.mark.slow
def test_an_image_gets_its_labels(browser, tmp_path):
    kr.export(colours(), tmp_path / "models" / "colours", preprocess=prepare(), labels=LABELS, top_k=2)
    Image.fromarray(np.full((30, 40, 3), (250, 100, 0), "uint8")).save(tmp_path / "red.png")
    Image.fromarray(np.full((30, 40, 3), (0, 50, 200), "uint8")).save(tmp_path / "blue.png")
    (tmp_path / "bad.png").write_bytes(b"text")
    with running(tmp_path / "models") as server:
        browser.get(f"http://127.0.0.1:{server.rest_port}/")

        def shown(words):
            WebDriverWait(browser, 20).until(lambda b: words in b.find_element(By.TAG_NAME, "body").text)

        shown("colours (version 1)")
        file = browser.find_element(By.ID, "file")
        file.send_keys(str(tmp_path / "red.png"))
        shown("rot 99.7 %")
        file.send_keys(str(tmp_path / "bad.png"))
        shown("This image cannot be read: not a JPEG")
        assert browser.find_element(By.ID, "answer").text == ""
        content = base64.b64encode((tmp_path / "blue.png").read_bytes()).decode()
        browser.execute_script(DROP, browser.find_element(By.ID, "drop"), content)
        shown("blau")
        shown("Only one image is classified at a time: dropped.png, the first of 2.")
        assert browser.find_elements(By.TAG_NAME, "tr")[0].text.startswith("blau")
        picture = browser.find_element(By.ID, "image")
        WebDriverWait(browser, 20).until(lambda _: picture.get_property("naturalWidth") == 40)
        browser.save_screenshot(str(tmp_path / "page.png"))
        browser.set_window_size(360, 800)  # a telephone: nothing sticks out
        width, inner = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert width <= inner
        browser.save_screenshot(str(tmp_path / "narrow.png"))
        errors = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
        assert not errors, errors
