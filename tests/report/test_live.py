"""The live page of a run: a file read while it grows, the server that only this machine may ask, the page itself."""

from __future__ import annotations

import http.client
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import sdsd
from sdsd.gamma.history import TOTAL, row_of_line
from sdsd.report.live import LiveRun, LiveServer
from sdsd.report.live import run as run_module
from sdsd.report.live.file import HistoryFile
from sdsd.report.live.server import POLICY
from tests import axe, browser


def lines(count: int, first: int = 1, names: int = 1, scale: float = 100.0) -> list[str]:
    """Lines of a made-up history, one for the total and each parameter of each step."""
    made = []
    for step in range(first, first + count):
        for place, name in enumerate([TOTAL, *(f"layer{number}.weight" for number in range(names))]):
            gamma = 1 / (scale + step + place)
            row = {
                "step": step,
                "parameter": name,
                "batch_size": 32,
                "signal": 1.0,
                "noise": 10.0 - place,
                "gamma": 0.3,
                "gamma_unbiased": 0.2,
                "noise_scale": 1 / gamma,
                "smoothed_gamma": gamma,
                "smoothed_noise_scale": 1 / gamma,
                "noise_scale_low": 0.5 / gamma,
                "noise_scale_high": None,
                "noise_scale_high_is": "inf",
                "phase": "diffusion",
                "recommended_batch": None,
                "verdict": "can grow",
                "advice": "Grow." if name == TOTAL else None,
            }
            made.append(json.dumps(row) + "\n")
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


# The file


def test_a_file_is_read_on_and_a_half_line_waits_for_its_rest(path):
    file = HistoryFile(path)
    assert not file.read().there
    one, two = lines(2, names=0)
    path.write_text(one + two[:40])
    assert [row["step"] for row in file.read().rows] == [1]
    assert file.read().rows == []
    with path.open("a") as more:
        more.write(two[40:-1])
    assert file.read().rows == []
    with path.open("a") as more:
        more.write("\n")
    (row,) = file.read().rows
    assert row == row_of_line(two)
    assert row["noise_scale_high"] == math.inf


def test_each_row_comes_once_however_the_writes_fall(path):
    text = "".join(lines(40)).encode()
    file, steps, generator = HistoryFile(path), [], torch.Generator().manual_seed(0)
    path.write_bytes(b"")
    while text:
        size = int(torch.randint(1, 900, (), generator=generator))
        with path.open("ab") as more:
            more.write(text[:size])
        text = text[size:]
        part = file.read(most=2000)
        assert not part.anew
        steps += [row["step"] for row in part.rows]
    steps += [row["step"] for row in file.read().rows]
    assert steps == [step for step in range(1, 41) for _ in range(2)]


@pytest.mark.parametrize("how", ["moved there", "cut", "written over"])
def test_another_file_in_its_place_begins_anew(path, how):
    path.write_text("".join(lines(5)))
    file = HistoryFile(path)
    file.read()
    other = "".join(lines(3 if how == "cut" else 9, scale=7.0))
    if how == "moved there":
        (path.parent / "other").write_text(other)
        os.replace(path.parent / "other", path)
    else:
        with path.open("r+") as same:
            same.truncate(0)
            same.write(other)
    part = file.read()
    assert part.anew
    assert len(part.rows) == (6 if how == "cut" else 18)
    assert not file.read().anew


def test_a_file_taken_away_and_put_back(path):
    run = LiveRun(path)
    path.write_text("".join(lines(5)))
    run.update()
    assert run.view()["step"] == 5
    path.unlink()
    run.update()
    assert (run.view()["state"], run.view()["there"], run.view()["step"]) == ("waiting", False, None)
    path.write_text("".join(lines(2)))
    run.update()
    assert run.view()["step"] == 2


def test_what_a_history_replaces_after_a_restart_is_replaced_here(path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def train(steps: int) -> None:
        with sdsd.GammaMonitor(model, history=path) as monitor:
            for _ in range(steps):
                model.zero_grad()
                model(torch.randn(8, 3)).square().mean().backward()
                monitor.step()

    run = LiveRun(path)
    train(7)
    run.update()
    train(3)
    run.update()
    view = run.view()
    assert (view["step"], view["rows"], view["curves"][0]["step"]) == (3, 3, [1, 2, 3])
    rows = sdsd.GammaHistory(path)
    assert view["curves"][0]["gamma"] == rows.column("smoothed_gamma")
    assert view["advice"] == rows[-1]["advice"] == str(sdsd.recommend_batch(monitored_again(rows)))


def monitored_again(rows):
    """The statistics behind the last row: the same three steps once more."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    for _ in range(7):
        torch.randn(8, 3)
    with sdsd.GammaMonitor(model) as monitor:
        for _ in range(3):
            model.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            monitor.step()
    assert monitor.smoothed.gamma_unbiased == rows[-1]["smoothed_gamma"]
    return monitor.smoothed


def test_a_line_that_is_no_row_is_said_with_its_number_and_mended(path):
    path.write_text("".join(lines(3, names=0)) + '{"loss": 3}\n')
    run = LiveRun(path)
    run.update()
    assert run.view()["state"] == "broken"
    assert "line 4: expected a row of a GammaHistory, got '{\"loss\": 3}'" in run.view()["problem"]
    version = run.version
    run.update()
    assert run.version == version
    path.write_text("".join(lines(4, names=0)))
    run.update()
    assert run.view()["problem"] is None
    assert run.view()["step"] == 4


def test_memory_does_not_grow_with_the_file(path, monkeypatch):
    monkeypatch.setattr(run_module, "MOST_POINTS", {True: 20, False: 10})
    path.write_text("".join(lines(1000, names=2)))
    run = LiveRun(path)
    run.update()
    for curve, most in zip(run.view()["curves"], (20, 10, 10), strict=True):
        steps = curve["step"]
        assert most <= len(steps) <= 2 * most + 1
        assert (steps[0], steps[-1]) == (1, 1000)
        assert len(set(steps)) == len(steps)
        gaps = {later - earlier for earlier, later in itertools.pairwise(steps[:-1])}
        assert len(gaps) == 1
        place = curve["name"].count("layer") and 1 + int(curve["name"][5])
        assert curve["gamma"] == [1 / (100 + step + place) for step in steps]


def test_of_many_parameters_the_loudest_are_shown_in_the_models_order(path, monkeypatch):
    monkeypatch.setattr(run_module, "MOST_NAMES", 3)
    path.write_text("".join(lines(2, names=6)))
    run = LiveRun(path)
    run.update()
    view = run.view()
    assert [curve["name"] for curve in view["curves"]] == [TOTAL, "layer0.weight", "layer1.weight", "layer2.weight"]
    assert view["left_out"] == 3


def test_whether_it_is_still_writing(path, monkeypatch):
    path.write_text("".join(lines(2)))
    run = LiveRun(path)
    run.update()
    assert run.view()["state"] == "writing"
    os.utime(path, (time.time() - 31, time.time() - 31))
    run.update()
    assert run.view()["state"] == "quiet"
    run._pauses.append(20.0)  # rows come every twenty seconds
    assert run.view()["state"] == "writing"


def test_values_that_are_not_finite_reach_the_page_as_strict_json(path):
    rows = [json.loads(line) for line in lines(3, names=0)]
    for key in ("smoothed_gamma", "noise_scale_low", "noise_scale_high", "smoothed_noise_scale"):
        rows[0] |= {key: None, f"{key}_is": "nan"}
    rows[0] |= {"noise_scale": None, "noise_scale_is": "inf"}
    rows[1] |= {"smoothed_gamma": None, "smoothed_gamma_is": "nan"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = LiveRun(path)
    run.update()
    (total,) = json.loads(json.dumps(run.view(), allow_nan=False))["curves"]
    assert total["gamma"] == [0.0, pytest.approx(1 / 102), pytest.approx(1 / 103)]
    assert total["low"] == [None, 0.0, 0.0]
    assert total["high"][0] is None
    assert total["high"][2] == pytest.approx(2 / 103)


# The server


@pytest.fixture
def server(path):
    with LiveServer(path) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def ask(server, address: str, method: str = "GET", host: str | None = None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, address, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def test_it_listens_to_this_machine_alone_on_a_free_port(server):
    assert server.socket.getsockname() == ("127.0.0.1", server.server_port)
    assert server.server_port > 0
    assert server.address == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
@pytest.mark.parametrize("port", ["", ":80", ":8000"])
def test_this_machines_names_are_answered_behind_any_tunnel(server, host, port):
    assert ask(server, "/data", host=host + port)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example:1", "", "[::1", "::1"]
)
@pytest.mark.parametrize("address", ["/", "/data", "/live.js", "/nowhere"])
def test_other_names_are_refused(server, host, address):
    status, _, text = ask(server, address, host=host)
    assert status == 403
    assert text == "expected 127.0.0.1 or localhost or [::1] as the host"


def test_every_answer_carries_the_policy(server):
    for address in ("/", "/live.js", "/live.css", "/data", "/nowhere"):
        for method in ("GET", "HEAD"):
            status, headers, text = ask(server, address, method)
            assert status == (404 if address == "/nowhere" else 200)
            assert headers["Content-Security-Policy"] == POLICY
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert (text == "") == (method == "HEAD")
    assert "unsafe" not in POLICY
    assert ask(server, "/", "POST")[0] == 501


def test_nothing_in_the_page_names_another_address(server):
    for address in ("/", "/live.css", "/live.js"):
        text = ask(server, address)[2].replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.|url\(|@import", text)


def test_data_come_whole_once_and_then_only_what_is_new(server, path):
    def data(query: str = "") -> dict:
        return json.loads(ask(server, f"/data{query}")[2], parse_constant=lambda constant: pytest.fail(constant))

    assert data()["state"] == "waiting"
    path.write_text("".join(lines(3)))
    first = data()
    assert [curve["name"] for curve in first["curves"]] == [TOTAL, "layer0.weight"]
    assert "curves" not in data(f"?version={first['version']}")
    with path.open("a") as more:
        more.writelines(lines(1, first=4))
    later = data(f"?version={first['version']}")
    assert later["curves"][0]["step"] == [1, 2, 3, 4]
    assert later["step"] == 4
    assert "curves" in data("?version=nonsense")


def test_a_name_is_escaped(tmp_path):
    from sdsd.report.live.page import page

    assert "<script>alert" not in page("<script>alert(1)</script>$x")


# The command


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sdsd", "watch", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_command_says_where_and_ends_cleanly(path):
    path.write_text("".join(lines(3)))
    process = start(str(path))
    said = process.stdout.readline()
    port = int(re.match(r"http://127\.0\.0\.1:(\d+)/  shows .*run\.jsonl while it grows", said)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/data")
    assert json.loads(connection.getresponse().read())["step"] == 3
    taken = start(str(path), "--port", str(port))
    _, refused = taken.communicate(timeout=60)
    assert taken.returncode == 2
    assert refused == f"error: --port {port}: Address already in use. Leave it out for a free one\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "ended\n", "")


# In a browser


@pytest.fixture
def chromium(tmp_path):
    if browser.executable() is None:
        pytest.skip("no Chromium or Chrome on this machine: apt-get install chromium, or name one in CHROME")
    with browser.Browser(tmp_path / "profile") as page:
        yield page


def test_the_page_waits_for_its_file_and_redraws_as_it_grows(chromium, server, path):
    page = chromium
    page.open(server.address)
    page.wait_for("document.querySelector('#note').textContent.includes('not there yet')")
    assert page.evaluate("document.querySelector('#run').hidden")
    path.write_text("".join(lines(30, names=3)))
    page.wait_for("document.querySelector('#state').textContent === 'writing'")
    assert page.evaluate("document.querySelector('#about').textContent").startswith("last step 30")
    assert page.evaluate("document.querySelector('#scale').textContent") == "130"
    assert page.evaluate("document.querySelector('#scale-label').textContent").endswith("(interval 65 – ∞)")
    assert page.evaluate("document.querySelector('#advice').textContent") == "Grow."
    assert page.evaluate("document.querySelectorAll('#gamma-chart path.curve').length") == 4
    named = page.evaluate("[...document.querySelectorAll('.batch-gamma')].map((each) => each.textContent)")
    assert named == ["Γ of a batch of 32"] * 2
    assert page.evaluate("document.querySelector('#parameters td').dataset.label") == "Γ of a batch of 32"
    before = page.evaluate("document.querySelector('#noise-chart path.total').getAttribute('d')")
    with path.open("a") as more:
        more.writelines(lines(20, first=31, names=3))
    page.wait_for("document.querySelector('#about').textContent.startsWith('last step 50')")
    assert page.evaluate("document.querySelector('#noise-chart path.total').getAttribute('d')") != before
    assert page.evaluate("document.querySelectorAll('#parameters tr').length") == 4
    assert page.complaints == []
    asked = {request.split("?")[0] for request in page.requests if request != "data:,"}
    assert asked == {server.address + name for name in ("", "live.css", "live.js", "data")}


def test_another_step_by_keyboard_mouse_and_slider(chromium, server, path):
    page = chromium
    path.write_text("".join(lines(30, names=2)))
    page.open(server.address)
    page.wait_for("document.querySelectorAll('#parameters tr').length === 3")
    shown = "Number(document.querySelector('#step-value').textContent)"
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.id") == "step"
    page.press("ArrowLeft", 37)
    page.press("ArrowLeft", 37)
    assert page.evaluate(shown) == 28
    assert page.evaluate("document.querySelector('#scale').textContent") == "128"
    assert page.evaluate("document.querySelector('#parameters td').textContent") == "0.25"
    assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')") == "step 28"
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.id") == "newest"
    page.evaluate("document.activeElement.click()")
    assert page.evaluate(shown) == 30
    box = "document.querySelector('#noise-chart').getBoundingClientRect()"
    left, top, width = (page.evaluate(f"{box}.{side}") for side in ("left", "top", "width"))
    page.move_mouse(left + width / 2, top + 50)
    assert 10 < page.evaluate(shown) < 20
    page.move_mouse(2, 2)
    assert page.evaluate(shown) == 30
    page.evaluate("document.querySelector('[aria-label=\"draw layer1.weight\"]').click()")
    assert page.evaluate("document.querySelectorAll('#gamma-chart path.curve').length") == 2


def test_the_page_says_when_nothing_answers_any_more(chromium, path):
    path.write_text("".join(lines(3)))
    with LiveServer(path) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        chromium.open(serving.address)
        chromium.wait_for("document.querySelectorAll('#parameters tr').length === 2")
        serving.shutdown()
        thread.join()
    chromium.wait_for("document.querySelector('#state').textContent === 'ended'")
    assert "Start it again" in chromium.evaluate("document.querySelector('#note').textContent")
    assert not chromium.evaluate("document.querySelector('#run').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_while_it_waits_and_when_it_draws(chromium, server, path, dark):
    if not axe.there():
        pytest.skip(axe.MISSING)
    chromium.show_as(400, dark=dark)
    chromium.open(server.address)
    chromium.wait_for("!document.querySelector('#note').hidden")
    assert axe.violations(chromium) == []
    path.write_text("".join(lines(30, names=3)))
    chromium.wait_for("document.querySelectorAll('#parameters tr').length === 4")
    assert axe.violations(chromium) == []


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_on_a_phone_nor_on_a_wide_screen(chromium, server, path, width, dark):
    path.write_text("".join(lines(30, names=3)))
    chromium.show_as(width, dark=dark)
    chromium.open(server.address)
    chromium.wait_for("document.querySelectorAll('#parameters tr').length === 4")
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    assert chromium.cut_off() == []
    colour = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(18, 22, 28)" if dark else "rgb(255, 255, 255)")
