"""The demo page, in a real browser: a picture is uploaded, a question typed, buttons are clicked, answers are read."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from running_demo import ROOT, RunningDemo, running_demo


pytest.importorskip("gradio", reason='pip install "hf_ravlm[demo]"')
selenium = pytest.importorskip("selenium.webdriver", reason='pip install "hf_ravlm[test]"')
chrome = pytest.importorskip("selenium.webdriver.chrome.service")
exceptions = pytest.importorskip("selenium.common.exceptions")
support = pytest.importorskip("selenium.webdriver.support.ui")


pytestmark = pytest.mark.slow
PATIENCE = 90  # seconds for an answer, on a machine with other things to do
FLAG = ROOT / "examples" / "flags" / "unseen" / "bt__emojione.png"
OTHER_FLAG = ROOT / "examples" / "flags" / "unseen" / "cv__notowaved.png"
QUESTION = "What is the capital of the country that uses this flag?"


class Page:
    """What a visitor sees and does."""

    def __init__(self, browser):
        self.browser = browser

    def open(self, address: str) -> None:
        self.browser.get(address)
        self.until(lambda: self.browser.find_elements("css selector", "#ask"))

    def until(self, true):
        return support.WebDriverWait(self.browser, PATIENCE, poll_frequency=0.1).until(lambda _browser: true())

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def count(self, selector: str) -> int:
        return len(self.browser.find_elements("css selector", selector))

    def read(self, name: str) -> str:
        return self.find(f"#{name} textarea").get_attribute("value")

    def click(self, selector: str) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        self.find(selector).click()

    def upload(self, name: str, *files: Path) -> None:
        self.find(f"#{name} input[type=file]").send_keys("\n".join(str(file) for file in files))

    def upload_image(self, file: Path) -> None:
        if self.count("#image button[aria-label='Remove Image']"):
            self.click("#image button[aria-label='Remove Image']")
        self.until(lambda: self.count("#image input[type=file]"))
        self.upload("image", file)
        self.until(lambda: self.count("#image img"))

    def type_question(self, text: str) -> None:
        self.find("#question textarea").clear()
        self.find("#question textarea").send_keys(text)

    def message(self) -> str:
        """The text of the message that pops up; it is closed again."""
        shown = "[data-testid=toast-text]"
        text = self.until(lambda: self.count(shown) and self.find(shown).text)
        self.click("[data-testid=toast-close]")
        self.until(lambda: not self.count(shown))
        return text

    def addresses(self) -> set[str]:
        """Hosts that pages of this browser asked for anything."""
        entries = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [
            entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"
        ]
        return {urlsplit(url).hostname for url in urls if url.startswith(("http", "ws"))}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> RunningDemo:
    with running_demo(tmp_path_factory.mktemp("demo")) as running:
        yield running
        assert running.stop() == 0  # by Ctrl-C
        assert running.messages.read_text().endswith("Closed.\n")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "chrome")]
    program, driver = next(filter(None, programs), None), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    arguments = ["headless=new", "disable-dev-shm-usage", "disable-gpu", "window-size=1400,1500", "no-first-run"]
    arguments += ["disable-background-networking", f"user-data-dir={tmp_path_factory.mktemp('browser')}"]
    if os.geteuid() == 0:
        arguments.append("no-sandbox")  # the sandbox does not run as root
    for argument in arguments:
        options.add_argument(f"--{argument}")
    try:
        running = selenium.Chrome(options=options, service=chrome.Service(driver))
    except exceptions.WebDriverException as error:
        pytest.skip(f"the browser does not start here: {(error.msg or '').splitlines()[0]}")
    yield running
    running.quit()


@pytest.fixture
def page(browser, demo) -> Page:
    page = Page(browser)
    page.open(demo.address)
    return page


def test_a_question_is_answered_with_evidence_and_without(page, demo, tmp_path):
    page.upload_image(FLAG)
    page.type_question(QUESTION)
    page.click("#ask")
    page.until(lambda: page.read("retrieved"))
    assert page.read("retrieved") == "Thimphu"
    assert page.read("closed") == ""
    page.until(lambda: page.count("#gallery img") == 1)
    assert "bt/capital" in page.find("#gallery").text
    assert page.count("#maps img") == 3  # the picture, where it speaks for the answer, where it found the passage
    assert "Capital of Bhutan: Thimphu." in page.find("#table").text
    page.browser.save_screenshot(str(tmp_path / "with.png"))

    page.click("#mode [data-testid^='without retrieval']")
    page.click("#ask")
    page.until(lambda: page.read("closed"))
    assert page.read("retrieved") == ""
    assert page.read("closed") != "Thimphu"
    page.until(lambda: not page.count("#gallery img"))
    alone = page.read("closed")

    page.click("#mode [data-testid^='both']")
    page.click("#ask")
    page.until(lambda: page.read("retrieved"))
    assert (page.read("retrieved"), page.read("closed")) == ("Thimphu", alone)
    page.browser.save_screenshot(str(tmp_path / "both.png"))
    page.click("#whole button")
    page.until(lambda: page.count("#sheet button[title='Download']"))
    assert not page.count("button[title*='hare']")  # which would publish pictures elsewhere
    assert page.addresses() == {"127.0.0.1"}
    assert demo.calls.read_text() == ""


def test_an_uploaded_knowledge_base_answers_for_its_visitor(page, tmp_path):
    archive = tmp_path / "own.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(FLAG, "flags/dragon.png")
        packed.writestr("flags/dragon.txt", "Capital of Bhutan: Phuentsholing.")
        packed.write(OTHER_FLAG, "flags/stars.png")
        packed.writestr("flags/stars.txt", "Capital of Cape Verde: Mindelo.")
        packed.writestr("flags/broken.png", b"no picture")
    page.upload("files", archive)
    page.until(lambda: "own" in page.find("#files").text)
    page.click("#use")
    page.until(lambda: page.read("status").startswith("2 passages"))
    assert "Left out: 1" in page.read("status")
    page.upload_image(FLAG)
    page.type_question(QUESTION)
    page.click("#ask")
    page.until(lambda: page.read("retrieved"))
    page.until(lambda: page.count("#gallery img") == 1)
    assert "flags/dragon" in page.find("#table").text
    assert page.read("retrieved") == "Phuentsholing"
    page.browser.save_screenshot(str(tmp_path / "own.png"))
    page.click("#drop")
    page.until(lambda: page.read("status").startswith("2,168"))


def test_bad_input_is_told_on_the_page(page, tmp_path):
    page.click("#ask")
    assert "There is no image. Upload one first." in page.message()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.upload("image", broken)
    page.until(lambda: page.count("#image button[aria-label='Remove Image']"))
    page.click("#ask")
    assert "not an image in one of the formats" in page.message()
    archive = tmp_path / "broken.zip"
    archive.write_bytes(b"no archive")
    page.upload("files", archive)
    page.until(lambda: "broken" in page.find("#files").text)
    page.click("#use")
    assert "the archive cannot be read" in page.message()
    page.browser.save_screenshot(str(tmp_path / "bad.png"))
    page.upload_image(FLAG)  # and it goes on
    page.click("#ask")
    page.until(lambda: page.read("retrieved"))
