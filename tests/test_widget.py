"""The widget: what it answers as one types and clicks, in Python, and in JupyterLab in a real browser."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from maskclip.segmenter import Segmenter
from miniature import render_scene

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render_scene(["umbrella", "cow", "grass", "sky"], colours=["red", "brown"], seed=2)[0]


def shown(widget: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(widget.picture))))


def test_it_answers_as_one_types_and_clicks(picture: np.ndarray) -> None:
    widget = Segmenter.load(device="cpu").widget(picture)
    plain = shown(widget)
    assert plain.shape == picture.shape and widget.answer is None
    widget.click = [0.5, 0.5]
    assert not widget.scores, "nothing is asked yet"
    widget.words = "umbrella"
    named = shown(widget)
    assert [one.name for one in widget.answer.segments] == ["umbrella"] and named.shape != plain.shape
    widget.words = "umbrella, gra"
    assert "never learned 'gra'" in widget.says and (shown(widget) == named).all(), "half a word changes no picture"
    widget.words = "umbrella, grass"
    assert {one.name for one in widget.answer.segments} == {"umbrella", "grass"} and not widget.says
    largest = widget.answer.segments[0]
    rows, columns = np.nonzero(largest.mask)
    middle = len(rows) // 2
    widget.click = [(columns[middle] + 0.5) / picture.shape[1], (rows[middle] + 0.5) / picture.shape[0]]
    assert f"{largest.name}<" in widget.scores and f"{largest.score:.0%}" in widget.scores
    rows, columns = np.nonzero(widget.answer.panoptic == 0)
    widget.click = [(columns[0] + 0.5) / picture.shape[1], (rows[0] + 0.5) / picture.shape[0]]
    assert widget.scores == "<p>None of these.</p>"
    widget.words = "boat"
    assert widget.says == "None of these is in the picture." and not widget.scores
    widget.words = ""
    assert shown(widget).shape == plain.shape and not widget.says


@pytest.fixture
def lab(tmp_path: Path, picture: np.ndarray) -> Iterator[str]:
    """The address of a JupyterLab of a folder of its own, with a notebook of one cell."""
    Image.fromarray(picture).save(tmp_path / "my.png")
    code = 'from maskclip import Segmenter\nSegmenter.load(device="cpu").widget("my.png", "umbrella")'
    notebook = new_notebook(cells=[new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "widget.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        "--ServerApp.port_retries=0",
    ]
    places = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | places | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "jupyterlab", *options]
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "JupyterLab")
        yield f"http://127.0.0.1:{port}/lab/tree/widget.ipynb"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its kernel, too
        server.wait(30)


def wait_for(what: Callable[[], Any], name: str, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:.0f} s for {name}")


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver")
def test_it_lives_in_jupyterlab_in_a_real_browser(lab: str, tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "disable-background-networking",
                   "disable-component-update", "disable-sync", "no-first-run", "window-size=1280,1600",
                   f"user-data-dir={tmp_path / 'browser'}"):  # fmt: skip
        options.add_argument(f"--{option}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))

    def find(selector: str, seconds: float = 120) -> Any:
        return wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, selector), selector, seconds)[0]

    def run_the_cell() -> bool:
        """JupyterLab draws the cell anew while it opens, and a key pressed then is lost, or asks for the kernel that it
        starts: tried until it shows."""
        if browser.find_elements(By.CSS_SELECTOR, ".maskclip input"):
            return True
        try:
            for button in browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog .jp-mod-accept"):
                button.click()
            find(".jp-Notebook .cm-content").click()
            ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
            find(".maskclip input", 30)
        except (WebDriverException, AssertionError):
            return False
        return True

    def source() -> str:
        return find(".maskclip img").get_attribute("src")

    try:
        browser.get(lab)
        find(".jp-Notebook-ExecutionIndicator[data-status=idle]")  # the kernel is there
        wait_for(run_the_cell, "the widget", 200)
        words = find(".maskclip input")
        wait_for(lambda: len(source()) > 100, "the picture")
        assert words.get_attribute("value") == "umbrella"
        before = source()
        words.send_keys(", grass")
        wait_for(lambda: source() != before, "another answer")
        words.send_keys(", lawnn")
        wait_for(lambda: "never learned 'lawnn'" in find(".maskclip .says").text, "the sentence")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", find(".maskclip img"))
        find(".maskclip img").click()  # its middle
        scores = wait_for(lambda: find(".maskclip .scores").text, "scores")
        assert "%" in scores or "None of these" in scores
    finally:
        browser.save_screenshot(os.environ.get("WIDGET_SCREENSHOT", str(tmp_path / "widget.png")))
        browser.quit()
