"""The page's server: who may ask, and what it answers; the command that starts it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys

import pytest

from sdsd.gamma.history import TOTAL
from sdsd.report.live.server import POLICY

from .rows import lines


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
