"""The page, used in a real browser."""

import shutil
import signal
import socket
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def address(embedded_model):
    """The page of the embedded model, served as a user serves it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ("--model_path", embedded_model, "--chat_template", "recipes/templates/smollm2.jinja", "--web")
    server = subprocess.Popen(
        [sys.executable, "sft/infer.py", *words, "--port", str(port), "--temperature", "0", "--max_new_tokens", "24"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert f"http://127.0.0.1:{port}" in server.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGINT)
        server.wait(timeout=600)
        assert server.returncode == 0
    finally:
        server.kill()


@pytest.fixture(scope="module")
def page(address):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (apt-get install chromium; .ci/run does)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(600_000)  # ends a hang, no more
        page.urls = []
        page.on("request", lambda request: page.urls.append(request.url))
        page.goto(address)
        page.wait_for_selector("#question textarea")
        yield page
        browser.close()


def fill(page, question, *options):
    page.fill("#question textarea", question)
    while page.locator("[id^=option-]").count() < len(options):
        boxes = page.locator("[id^=option-]").count()
        page.click("#more")
        page.wait_for_function(f"document.querySelectorAll('[id^=option-]').length > {boxes}")
    shown = page.locator("[id^=option-]").count()
    for letter, option in zip("ABCDEFGHIJ"[:shown], (*options, *[""] * 10)[:shown], strict=True):
        page.fill(f"#option-{letter} :is(input, textarea)", option)
    page.click("#ask")


def test_a_question_is_asked_and_the_answer_appears(page, address, tmp_path):
    assert "Not medical advice" in page.inner_text("body")
    fill(page, "Which technique uses sound waves?", "Ultrasound", "Computed tomography", "X-ray")
    page.wait_for_function("document.querySelector('#cost').innerText.includes('tokens in')")
    assert page.inner_text("#answer").strip()
    bars = page.inner_text("#bars")
    assert all(option in bars for option in ("A. Ultrasound", "B. Computed tomography", "C. X-ray"))
    assert bars.count("%") == 3
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000
    # Nothing is fetched from, or sent to, anybody else.
    assert all(url.startswith((address, "data:", "blob:")) for url in page.urls)


def test_boxes_are_added_for_up_to_ten_options_and_an_example_empties_them(page, tmp_path):
    fill(page, "Which is the last?", *(f"Number {i}" for i in range(1, 11)))
    page.wait_for_function("document.querySelector('#bars')?.innerText.includes('J. Number 10')")
    assert page.inner_text("#bars").count("%") == 10
    assert not page.is_visible("#more")
    page.screenshot(path=tmp_path / "ten.png", full_page=True)
    page.click("text=Which stain is used to show iron in tissue?")
    page.wait_for_function("!document.querySelector('#option-J :is(input, textarea)').value")
    assert page.input_value("#option-D :is(input, textarea)") == "Von Kossa"


def test_bad_input_is_reported_and_the_session_goes_on(page):
    fill(page, "Which technique uses sound waves?", "Ultrasound")
    page.wait_for_function("document.querySelector('#answer').innerText.includes('two to ten options')")
    fill(page, "What is an X-ray?")
    page.wait_for_function("document.querySelector('#cost').innerText.includes('tokens in')")
    assert "two to ten" not in page.inner_text("#answer")
