"""The Tiny web server of examples/, run as a program, with curl, nc, socat and misbehaving clients."""

# ruff: noqa: F811, the fixtures are imported

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess

import pytest

from support.peers import reset
from support.programs import EXAMPLES, LONG, OTHERS, command, other, run, serve, start  # noqa: F401, fixtures

BINARY = random.Random("tiny").randbytes(300_000)
HOME = EXAMPLES / "tiny-home"


@pytest.fixture
def home(tmp_path):
    """Create the served directory, with a secret file beside it."""
    home = tmp_path / "home"
    shutil.copytree(HOME, home)
    (tmp_path / "secret").write_bytes(b"top secret")
    (home / "page.html").write_bytes(b"<p>page")
    for kind in ("gif", "png", "jpg", "dat"):
        (home / f"file.{kind}").write_bytes(BINARY)
    (home / "empty.txt").touch()
    (home / "folder").mkdir()
    return home


def program(home, name, text):
    """Create a CGI program in cgi-bin."""
    path = home / "cgi-bin" / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def tiny(serve, home):
    return serve("tiny.py", cwd=home)


@pytest.fixture
def limited_tiny(serve, home):
    """Return a function that starts Tiny with other timeouts and limits."""

    def start(**limits):
        lines = [f"tiny.{name} = {value}" for name, value in limits.items()]
        code = "\n".join(
            [f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import tiny", *lines, "tiny.main(sys.argv)"]
        )
        return serve("tiny.py", code=code, cwd=home)

    return start


def curl(tiny, path, *options):
    """Send a request with curl. Returns the status, the headers with lower-case names, and the body."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url = f"http://127.0.0.1:{tiny.port}{path}"
    argv = ["curl", "-q", "-s", "-S", "-i", "--noproxy", "*", "--max-time", str(LONG), "--path-as-is", *options, url]
    done = subprocess.run(argv, capture_output=True, timeout=2 * LONG, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return parsed(done.stdout)


def ask(tiny, request):
    """Send these bytes as the request. Returns the same as curl()."""
    with tiny.connect() as rio:
        rio.writen(request)
        return parsed(rio.read())


def get(tiny, uri):
    return ask(tiny, b"GET %s HTTP/1.0\r\n\r\n" % uri)


def get_nothing(tiny, uri):
    """Request a CGI program that prints nothing, and check that only Tiny's own headers arrive."""
    with tiny.connect() as rio:
        rio.writen(b"GET %s HTTP/1.0\r\n\r\n" % uri)
        assert rio.read() == b"HTTP/1.0 200 OK\r\nServer: Tiny Web Server\r\n"


def parsed(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert re.match(r"HTTP/1\.0 \d{3} \w", first), answer[:200]
    return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in headers)}, body


def alive(tiny):
    """Report whether Tiny still serves."""
    return get(tiny, b"/page.html")[2] == b"<p>page"


def complaint(tiny):
    return tiny.child.complaints.readline().decode().rstrip("\n")


# Behaviour of the book's Tiny


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("page.html", "text/html"),
        ("file.gif", "image/gif"),
        ("file.png", "image/png"),
        ("file.jpg", "image/jpeg"),
        ("file.dat", "text/plain"),
        ("empty.txt", "text/plain"),
    ],
)
def test_file_is_served_unchanged(tiny, home, name, kind):
    content = (home / name).read_bytes()
    headers = {"server": "Tiny Web Server", "content-length": str(len(content)), "content-type": kind}
    assert curl(tiny, f"/{name}") == (200, headers, content)
    assert tiny.end() == b""


def test_slash_serves_the_home_page(tiny):
    status, headers, body = curl(tiny, "/")
    assert (status, headers["content-type"], body) == (200, "text/html", (HOME / "home.html").read_bytes())


@pytest.mark.long
def test_cgi_program_adds(tiny):
    status, headers, body = curl(tiny, "/cgi-bin/adder.py?15000&213")
    assert (status, headers["server"], headers["content-type"]) == (200, "Tiny Web Server", "text/html")
    assert headers["content-length"] == str(len(body))
    assert b"The answer is: 15000 + 213 = 15213" in body
    assert tiny.end() == b""


@pytest.mark.long
@pytest.mark.sampled(3)
@pytest.mark.parametrize("arguments", ["", "?", "?1", "?a&b", "?1&2&3", "?" + "9" * 5000 + "&1"])
def test_the_cgi_program_explains_its_arguments(tiny, arguments):
    status, _, body = curl(tiny, "/cgi-bin/adder.py" + arguments)
    assert (status, b"needs two numbers" in body) == (200, True)
    assert tiny.end() == b""


@pytest.mark.parametrize(
    "path", ["/nothing.html", "/page.html/", "/page.html?query", "/cgi-bin/nothing", "/" + "x" * 999]
)
def test_missing_file_is_a_404(tiny, path):
    status, headers, body = curl(tiny, path)
    assert (status, headers["content-type"]) == (404, "text/html")
    assert b"404: Not found" in body
    assert b"Tiny couldn't find this file: ." in body
    assert tiny.end() == b""


@pytest.mark.parametrize("path", ["/folder", "/locked.txt", "/cgi-bin", "/cgi-bin/", "/cgi-bin/notes.txt"])
def test_file_that_cannot_be_read_or_run_is_a_403(tiny, home, path):
    (home / "locked.txt").touch(0o000)
    (home / "cgi-bin" / "notes.txt").touch(0o644)
    status, _, body = curl(tiny, path)
    assert status == 403
    assert b"Tiny couldn't r" in body
    assert tiny.end() == b""


@pytest.mark.parametrize("options", [["-I"], ["-X", "DELETE"], ["-d", "a=b"]], ids=["HEAD", "DELETE", "POST"])
def test_other_methods_are_a_501(tiny, options):
    assert curl(tiny, "/", *options)[0] == 501
    assert tiny.end() == b""


@pytest.mark.parametrize("newline", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_clients_are_served(tiny, name, newline):
    request = newline.join([b"GET /file.gif HTTP/1.0", b"Host: localhost", b"", b""])
    status, out, _ = run(other(name, "127.0.0.1", tiny.port), request)
    assert (status, parsed(out)[2]) == (0, BINARY)


def test_it_prints_the_client_and_the_request(tiny):
    ask(tiny, b"GET /page.html HTTP/1.0\r\nHost: localhost\r\n\r\n")
    lines = tiny.lines(5)
    for line in lines[:2]:  # the first line is of the client that waited for the start
        assert re.fullmatch(r"Accepted connection from \(.+, \w+\)", line)
    assert lines[2:] == ["GET /page.html HTTP/1.0", "Host: localhost", ""]


@pytest.mark.parametrize("args", [[], ["80", "90"]], ids=["none", "two"])
def test_wrong_number_of_arguments_prints_the_usage_and_exits_with_status_1(args):
    assert run(command("tiny.py", *args)) == (1, b"", b"usage: tiny.py <port>\n")


# Fixed faults: paths


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "uri",
    [
        b"/../secret",
        b"/folder/../../secret",
        b"/../nothing",
        b"//../secret",
        b"/link",
        b"/linked/secret",
        b"/cgi-bin/../page.html",
        b"/cgi-bin/../run.sh",
        b"/cgi-bin/../../secret",
        b"/cgi-bin/../../../../../../../../../../bin/sh",
        b"/cgi-bin/link",
        b"//cgi-bin/adder.py",
        b"/./cgi-bin/adder.py",
        b"/folder/../cgi-bin/adder.py",
        b"/source",
    ],
)
def test_no_path_leads_out_of_the_directory_or_to_the_source_of_a_program(tiny, home, uri):
    (home / "link").symlink_to(home.parent / "secret")
    (home / "linked").symlink_to(home.parent)
    (home / "cgi-bin" / "link").symlink_to("/bin/sh")
    (home / "source").symlink_to("cgi-bin/adder.py")
    (home / "run.sh").write_text("#!/bin/sh\n")
    (home / "run.sh").chmod(0o755)
    status, _, body = get(tiny, uri)
    assert status == 403
    assert b"secret" not in body.replace(uri, b"")
    assert b"import" not in body
    assert tiny.end() == b""


def test_cgi_bin_elsewhere_in_the_uri_does_not_run_the_file(tiny, home):
    (home / "run.sh").write_text("#!/bin/sh\necho I ran\n")
    (home / "run.sh").chmod(0o755)
    assert get(tiny, b"/run.sh?cgi-bin")[0] == 404
    assert get(tiny, b"/run.sh/cgi-bin/")[0] == 404
    assert get(tiny, b"/run.sh")[2] == b"#!/bin/sh\necho I ran\n"


@pytest.mark.long
def test_links_and_dots_are_allowed_inside_the_directory(tiny, home):
    (home / "inside").symlink_to("page.html")
    (home / "..page").write_bytes(b"dots")
    assert get(tiny, b"/inside")[2] == b"<p>page"
    assert get(tiny, b"/folder/../page.html")[2] == b"<p>page"
    assert get(tiny, b"/..page")[2] == b"dots"


# Fixed faults: requests


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.0 more\r\n\r\n",
        b"GET page.html HTTP/1.0\r\n\r\n",
        b"GET http://localhost/ HTTP/1.0\r\n\r\n",
        b"GET /page.html\0.gif HTTP/1.0\r\n\r\n",
        b"GET /cgi-bin/adder.py?1&2\0 HTTP/1.0\r\n\r\n",
        b"GET /" + b"x" * 9000 + b" HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nLong: " + b"x" * 100_000 + b"\r\n\r\n",
        b"x" * 1_000_000,
        b"GET / HTTP/1.0\r\n" + b"More: 1\r\n" * 101 + b"\r\n",
    ],
    ids=lambda request: f"{request[:18]!r} {len(request)}",
)
def test_malformed_request_receives_a_400(tiny, request_):
    status, _, body = ask(tiny, request_)
    assert (status, b"400: Bad Request" in body) == (400, True)
    assert alive(tiny)
    assert tiny.end() == b""


def test_request_at_the_limits_is_served(tiny):
    longest = b"Long: " + b"x" * (8191 - 8) + b"\r\n"
    assert ask(tiny, b"GET /page.html HTTP/1.0\r\n" + longest + b"More: 1\r\n" * 99 + b"\r\n")[2] == b"<p>page"


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.0\r\n", b"GET / HTTP/1.0\r\nHost: lo", b"GET / HT"])
def test_end_of_input_inside_a_request_is_a_400(tiny, request_):
    with tiny.connect() as rio:
        rio.writen(request_)
        with socket.socket(fileno=os.dup(rio.fileno())) as sock:
            sock.shutdown(socket.SHUT_WR)
        assert parsed(rio.read())[0] == 400
    assert alive(tiny)


@pytest.mark.long
def test_response_arrives_whole_although_the_body_of_the_request_is_unread(tiny, tmp_path):
    (tmp_path / "body").write_bytes(BINARY * 10)
    status, _, body = curl(tiny, "/", "--data-binary", f"@{tmp_path / 'body'}", "-H", "Expect:")
    assert (status, body.endswith(b"<hr><em>The Tiny Web server</em>\r\n")) == (501, True)
    assert tiny.end() == b""


def test_text_from_the_client_is_escaped_in_the_page_and_on_the_terminal(tiny):
    status, _, body = get(tiny, b"/<script>alert(1)</script>\xff")
    assert status == 404
    assert b"./&lt;script&gt;alert(1)&lt;/script&gt;\\xff" in body
    ask(tiny, b"GET / HTTP/1.0\r\nTitle: \x1b]0;gotcha\x07\xe4\r\n\r\n")
    assert "Title: \\x1b]0;gotcha\\x07\\xe4" in tiny.lines(8)


# Fixed faults: clients


def test_reset_during_a_response_is_reported_and_the_next_client_is_served(tiny, home):
    with (home / "big").open("wb") as big:
        big.truncate(1 << 28)
    rio = tiny.connect()
    rio.writen(b"GET /big HTTP/1.0\r\n\r\n")
    assert rio.readline() == b"HTTP/1.0 200 OK\r\n"
    reset(rio.detach()[0])
    assert re.search(r"^doit error: .*(Connection reset|Broken pipe)", complaint(tiny))
    assert alive(tiny)
    assert tiny.end() == b""


@pytest.mark.slow
def test_client_that_sends_no_complete_request_times_out(limited_tiny):
    tiny = limited_tiny(TIMEOUT=1)
    for beginning in (b"", b"GET / HTTP/1.0\r\n", b"GET / HTTP/1.0\r\nHos"):
        with tiny.connect() as rio, contextlib.suppress(ConnectionError):  # the time may be over before the beginning
            rio.writen(beginning)
            assert rio.read() == b""
        assert complaint(tiny).startswith("doit error: ")
    assert alive(tiny)


@pytest.mark.slow
def test_headers_do_not_renew_the_timeout_of_the_request(limited_tiny):
    tiny = limited_tiny(TIMEOUT=1, MAXHDRS=10**9)
    with tiny.connect() as rio, contextlib.suppress(ConnectionError):
        rio.writen(b"GET / HTTP/1.0\r\n")
        for _ in range(int(LONG / 0.02)):
            rio.writen(b"Again: 1\r\n")
            with contextlib.suppress(TimeoutError):
                assert rio.fill(timeout=0.02) == 0
                break
        else:
            pytest.fail("the request did not time out")
    assert complaint(tiny).startswith("doit error: ")
    assert alive(tiny)


@pytest.mark.slow
def test_client_that_does_not_read_times_out(limited_tiny, home):
    with (home / "big").open("wb") as big:
        big.truncate(1 << 28)
    tiny = limited_tiny(TIMEOUT=1)
    with tiny.connect() as rio:
        rio.writen(b"GET /big HTTP/1.0\r\n\r\n")
        assert "timed out" in complaint(tiny)
        assert alive(tiny)


@pytest.mark.long
def test_client_that_does_not_close_times_out(limited_tiny):
    tiny = limited_tiny(LINGER=0.2)
    with tiny.connect() as rio:
        rio.writen(b"GET /page.html HTTP/1.0\r\n\r\n")
        assert parsed(rio.read())[2] == b"<p>page"
        assert alive(tiny)


# Fixed faults: files


def test_file_truncated_while_it_is_sent_ends_only_the_response(tiny, home):
    with (home / "big").open("wb") as big:
        big.truncate(1 << 28)
    with tiny.connect() as rio:
        rio.writen(b"GET /big HTTP/1.0\r\n\r\n")
        assert rio.readline() == b"HTTP/1.0 200 OK\r\n"
        os.truncate(home / "big", 100)
        assert len(rio.read()) < 1 << 28
    assert alive(tiny)
    assert tiny.end() == b""


def test_file_without_read_permission_is_a_403(limited_tiny, home):
    if os.geteuid() != 0:
        pytest.skip("only root can create a file that Tiny's user may not read")
    home.chmod(0o755)
    (home / "locked.txt").touch(0o600)
    tiny = limited_tiny(TIMEOUT="tiny.os.setuid(65534) or 10.0")
    assert get(tiny, b"/locked.txt")[0] == 403
    assert alive(tiny)


# Fixed faults: CGI programs


def test_cgi_program_inherits_no_descriptor_of_the_server(tiny, home):
    program(home, "fds", "#!/bin/sh\nprintf 'Content-type: text/plain\\r\\n\\r\\n'\nls /dev/fd/ | tr '\\n' ' '\n")
    numbers = get(tiny, b"/cgi-bin/fds")[2].split()
    assert len(numbers) <= 4, numbers  # 0, 1, 2, and the directory that ls reads


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!/bin/sh\nexit 3\n", "CGI program ended with 3"),
        ("#!/bin/sh\nkill -9 $$\n", "CGI program ended with -9"),
        ("no program at all", "Execve error: .*"),
        ("#!/no/such/interpreter\n", "Execve error: .*"),
    ],
)
def test_failing_cgi_program_is_reported_and_the_next_client_is_served(tiny, home, text, words):
    if os.environ.get("RIOECHO_BUILD") == "sanitize" and words.startswith("Execve"):
        pytest.skip("LeakSanitizer aborts a process that ends without finalizing Python")
    program(home, "failing", text)
    get_nothing(tiny, b"/cgi-bin/failing")
    assert re.fullmatch(words, complaint(tiny))
    if words.startswith("Execve"):
        assert complaint(tiny) == "CGI program ended with 1"
    assert alive(tiny)
    assert tiny.end() == b""


@pytest.mark.long
def test_endless_cgi_program_times_out(limited_tiny, home):
    program(home, "endless", "#!/bin/sh\nexec tail -f /dev/null\n")
    tiny = limited_tiny(CGI_TIMEOUT=0.3)
    get_nothing(tiny, b"/cgi-bin/endless")
    assert complaint(tiny) == "CGI program ended with -14"
    assert alive(tiny)


def test_cgi_program_ends_when_its_client_disconnects(tiny, home):
    # The program ignores write errors, so that only SIGPIPE ends it.
    talk = "exec 2>/dev/null\nprintf 'Content-type: text/plain\\r\\n\\r\\n'\nwhile :; do echo y; done\n"
    program(home, "talking", "#!/bin/sh\n" + talk)
    rio = tiny.connect()
    rio.writen(b"GET /cgi-bin/talking HTTP/1.0\r\n\r\n")
    while rio.readline() != b"y\n":
        pass
    reset(rio.detach()[0])
    assert complaint(tiny) == "CGI program ended with -13"
    assert re.search("^doit error: ", complaint(tiny))
    assert alive(tiny)


@pytest.mark.long
def test_cgi_program_leaves_no_zombie(tiny):
    for _ in range(3):
        assert get(tiny, b"/cgi-bin/adder.py?1&2")[0] == 200
    assert alive(tiny)
    ps = ["ps", "-A", "-o", "ppid=,stat="]
    if shutil.which("ps") is None:
        pytest.skip("ps is not installed")
    lines = subprocess.run(ps, capture_output=True, text=True, timeout=LONG, check=True).stdout.splitlines()
    assert [line for line in lines if line.split()[0] == str(tiny.child.pid)] == []
