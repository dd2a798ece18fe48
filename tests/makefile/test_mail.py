"""The standard library's mail and FTP clients work with rioecho.makefile in place of socket.makefile."""

import ftplib
import imaplib
import io
import poplib
import smtplib

import pytest

from support.conversations import LONG, dial, files_of, serving  # noqa: F401, a fixture
from support.tiny_servers import BIG, Ftp, Imap, Pop3, Smtp

MESSAGES = [
    b"Subject: short\r\n\r\nbody\r\n",
    b"Subject: dots\r\n\r\n.\r\n..\r\n.a line\r\n\r\n.\r\n",
    b"Subject: long\r\n\r\n" + BIG.replace(b"\n", b"\r\n"),
]

# ---- SMTP


@pytest.fixture
def post_office():
    with serving(Smtp, messages=[]) as server:
        yield server


@pytest.fixture
def smtp(post_office):
    with smtplib.SMTP("127.0.0.1", post_office.port, local_hostname="localhost", timeout=LONG) as client:
        yield client


def test_smtplib_delivers_messages_unchanged(post_office, smtp):
    for message in MESSAGES:
        assert smtp.sendmail("a@localhost", ["b@localhost", "c@localhost"], message) == {}
    assert post_office.messages == MESSAGES


def test_smtplib_reads_answers_of_several_lines(smtp):
    assert smtp.ehlo() == (250, b"localhost\nSIZE 100000000")
    assert smtp.esmtp_features == {"size": "100000000"}
    assert smtp.docmd("RSET") == (250, b"well\nall is\nfine")


def test_an_smtp_server_refuses_a_long_line_and_goes_on(post_office, smtp):
    assert smtp.docmd("NOOP", "x" * 100_000) == (500, b"line too long")
    smtp.sendmail("a@localhost", "b@localhost", MESSAGES[0])
    assert post_office.messages == MESSAGES[:1]


def test_smtplib_refuses_a_long_line(smtp):
    with pytest.raises(smtplib.SMTPResponseException, match="Line too long"):
        smtp.docmd("HELP")


def test_pipelined_smtp_commands_are_answered_in_order(post_office):
    with dial(post_office.port) as sock, sock.makefile("rw", encoding="ascii", newline="\r\n") as file:
        file.write("EHLO me\nRCPT a\nDATA\nSubject: x\n\n..\n.\nNONE\nQUIT\n")
        file.flush()
        codes = [line[:4] for line in file]
    assert codes == ["220 ", "250-", "250 ", "250-", "250-", "250 ", "354 ", "250 ", "502 ", "221 "]
    assert post_office.messages == [b"Subject: x\r\n\r\n.\r\n"]


# ---- POP3


@pytest.fixture
def pop():
    with serving(Pop3, messages=MESSAGES) as server:
        client = poplib.POP3("127.0.0.1", server.port, timeout=LONG)
        try:
            yield client
        finally:
            client.close()


def test_poplib_fetches_a_mailbox(pop):
    assert pop.getwelcome() == b"+OK ready"
    pop.user("me")
    pop.pass_("secret")
    assert pop.stat() == (3, sum(map(len, MESSAGES)))
    assert pop.list()[1] == [b"%d %d" % (number, len(message)) for number, message in enumerate(MESSAGES, 1)]
    for number, message in enumerate(MESSAGES, 1):
        lines = pop.retr(number)[1]
        assert b"".join(line + b"\r\n" for line in lines) == message
    assert pop.quit() == b"+OK bye"


def test_poplib_refuses_a_long_line_and_an_error(pop):
    with pytest.raises(poplib.error_proto, match="ERR unknown"):
        pop.uidl()
    with pytest.raises(poplib.error_proto, match="line too long"):
        pop.top(1, 0)


# ---- IMAP


@pytest.fixture
def mailbox():
    with serving(Imap, messages=list(MESSAGES)) as server:
        yield server


@pytest.mark.long
def test_imaplib_fetches_and_appends_literals(mailbox):
    with imaplib.IMAP4("127.0.0.1", mailbox.port, timeout=LONG) as client:
        assert client.login("user", "pass word")[0] == "OK"
        assert client.select() == ("OK", [b"3"])
        for message in MESSAGES:
            assert client.append("INBOX", r"(\Seen)", None, message)[0] == "OK"
        fetched = client.fetch("1:*", "(RFC822)")[1]
        with pytest.raises(imaplib.IMAP4.error, match="BAD"):
            client.check()
    assert [part[1] for part in fetched[::2]] == MESSAGES * 2
    assert fetched[1] == b" FLAGS ())"
    assert mailbox.messages == MESSAGES * 2


# ---- FTP


@pytest.fixture
def store():
    with serving(Ftp, files={"small": b"small\r\nfile\r\n", "big": BIG, "empty": b""}) as server:
        yield server


@pytest.fixture
def ftp(store):
    with ftplib.FTP(timeout=LONG) as client:  # noqa: S321, on loopback
        client.connect("127.0.0.1", store.port)
        assert client.getwelcome() == "220-several lines\n of welcome\n220 ready"
        client.login("me", "secret")
        yield client


@pytest.mark.parametrize("name", ["small", "big", "empty"])
def test_ftplib_retrieves_and_stores_binary_files(store, ftp, name):
    parts = []
    assert ftp.retrbinary(f"RETR {name}", parts.append) == "226 done"
    assert b"".join(parts) == store.files[name]
    assert ftp.storbinary("STOR copy", io.BytesIO(b"".join(parts))) == "226 done"
    assert store.files["copy"] == store.files[name]


@pytest.mark.slow
def test_ftplib_retrieves_and_stores_text_files(store, ftp):
    lines = []
    assert ftp.retrlines("RETR small", lines.append) == "226 done"
    assert lines == ["small", "file"]
    assert ftp.storlines("STOR copy", io.BytesIO(BIG)) == "226 done"
    assert store.files["copy"] == BIG.replace(b"\n", b"\r\n")


def test_ftplib_lists_and_goes_on_after_an_error(ftp):
    with pytest.raises(ftplib.error_perm, match="no such file"):
        ftp.retrbinary("RETR nothing", bytes)
    lines = []
    ftp.dir(lines.append)
    assert lines == ["small", "big", "empty"]


def test_ftplib_refuses_a_long_line_of_text(store, ftp):
    store.files["wide"] = b"x" * 10_000
    with pytest.raises(ftplib.Error, match="got more than 8192 bytes"):
        ftp.retrlines("RETR wide")
