"""The software that run.py runs: the one table of versions.

Of the suites of asyncio's streams, ``wanted`` and ``failing`` are all that fails, with the servers of Debian 12 (Redis
7.0, MariaDB 10.11): aiomysql's passes as a whole with the standard library's streams, redis-py's but for two tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PYTEST = "pytest==9.1.1"


@dataclass(frozen=True)
class Software:
    """A version of a package of the registry, and the tests that run on it.

    ``tests`` are pytest's arguments in the unpacked source archive; $NAME is a variable of a service. With
    ``session``, the tests are a file of ``sessions/`` instead, because the archive has none. A package named ``python``
    is the running interpreter's standard library, and ``tests`` are then modules of its package ``test``.

    A test in ``failing``, whatever its parameters, fails with the standard library's files too and shows nothing.

    A test in ``unsteady`` fails now and then with the standard library's files too. It is repeated until it passes with
    rioecho's (suites.REPEATS); one that never does is broken.
    """

    name: str
    version: str
    tests: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    pytest: str = PYTEST
    session: str = ""
    package: str = ""  # the name in the registry, if it is another
    services: tuple[str, ...] = ()
    configuration: dict[str, str] = field(default_factory=dict)  # files to write; $NAME is a variable of a service
    variables: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)  # names of tests that rioecho's promises fail: the reason
    failing: dict[str, str] = field(default_factory=dict)  # names of tests that fail with both kinds: the reason
    unsteady: dict[str, str] = field(default_factory=dict)  # names of tests that fail now and then: the reason
    drop_in: str = "makefile"  # what is swapped; or "streams", for asyncio's
    seconds: int = 60  # about what one of the two runs takes
    quick: tuple[str, ...] = ()  # the tests of --quick, which does without the software if this is empty


DATABASES = """[
    {"host": "127.0.0.1", "port": $MARIADB_PORT, "user": "root", "passwd": "", "db": "test1", "use_unicode": true,
     "local_infile": true},
    {"host": "127.0.0.1", "port": $MARIADB_PORT, "user": "root", "passwd": "", "db": "test2"}
]"""

#: A module that an interpreter does not have is left out: test_nntplib is in 3.11 and 3.12 alone.
STDLIB_CLIENTS = ("test_ftplib", "test_httplib", "test_imaplib", "test_nntplib", "test_poplib", "test_smtplib")
STDLIB = (
    *(*STDLIB_CLIENTS, "test_httpservers", "test_socket", "test_socketserver", "test_ssl", "test_urllib2_localnet"),
    *("test_wsgiref", "test_xmlrpc"),
)

STDLIB_STREAMS = ("test_streams", "test_server", "test_buffered_proto", "test_pep492", "test_subprocess", "test_ssl")

OVER_LIMIT = "it requires that readline() removes a line that is longer than the limit"
PAUSED = "it requires that the transport pauses although a call waits for all that comes"

#: The tests of one server of Redis, which need no cluster, module or account.
REDIS = (
    *("client", "command_parser", "commands", "connect", "connection", "connection_pool", "cwe_404", "encoding"),
    *("hash", "keyspace_notifications", "lock", "monitor", "pipeline", "pubsub", "retry", "scripting", "sentinel"),
    *("sentinel_managed_connection", "utils"),
)

CATALOGUE = [
    Software(
        "PyMySQL",
        "0.10.1",  # the last one whose archive has the tests
        tests=("pymysql/tests",),
        requirements=("cryptography==49.0.0",),
        services=("MariaDB",),
        configuration={"pymysql/tests/databases.json": DATABASES},
    ),
    Software(
        "PyMySQL-session",
        "1.2.4",
        package="PyMySQL",
        session="mysql.py",
        services=("MariaDB",),
    ),
    Software(
        "pg8000",
        "1.31.6",
        tests=("test", "--ignore=test/test_readme.py", "--benchmark-disable"),
        requirements=("pytest-benchmark==5.1.0", "pytest-mock==3.15.1", "pytz==2025.2"),
        services=("PostgreSQL",),
    ),
    Software(
        "urllib3",
        "2.8.0",
        # Its own hypercorn is not in the registry: the tests of proxies in HTTPS fail with every kind of file. Those of
        # the probe of HTTP/2 may wait for ever.
        tests=("test", "-k", "not http2_probe_blocked"),
        requirements=(
            *("anyio[trio]==4.13.0", "h2==4.3.0", "httpx==0.28.1", "hypercorn==0.18.0", "pysocks==1.7.1"),
            *("pytest-socket==0.7.0", "pytest-timeout==2.4.0", "quart==0.20.0", "quart-trio==0.12.0", "trio==0.33.0"),
            *("cryptography==49.0.0", "idna==3.13", "pyopenssl==26.3.0", "trustme==1.2.1", "brotli==1.2.0"),
        ),
        # Where a network answers for 240.0.0.0, the first one leaves a socket to the garbage collector, whose warning
        # fails the test that runs then.
        unsteady=dict.fromkeys(
            ["test_create_connection_timeout", "test_http2_test_error[h11]"],
            "a socket is left open, and reported when the garbage collector finds it",
        ),
        seconds=100,
    ),
    Software(
        "requests",
        "2.34.2",
        tests=("tests",),
        requirements=(
            *("pytest-httpbin==2.1.0", "httpbin==0.10.2", "pytest-mock==3.15.1", "trustme==1.2.1", "pysocks==1.7.1"),
            *("werkzeug==3.1.3", "flask==3.1.2", "flasgger==0.9.7.1"),
        ),
        # Without the tests that wait: for a server that they wrote, or for a name or an address that does not answer.
        quick=(
            "tests/test_requests.py",
            "--deselect=tests/test_requests.py::TestTimeout",
            "--deselect=tests/test_requests.py::TestPreparingURLs::test_different_connection_pool_for_tls_settings",
        ),
    ),
    Software(
        "docker",
        "7.0.0",  # the last one whose archive has the tests
        tests=("tests/unit",),
        requirements=("paramiko==3.5.1", "requests==2.31.0", "urllib3==1.26.18", "websocket-client==1.3.3"),
        quick=("tests/unit",),
    ),
    Software(
        "cheroot",
        "11.1.2",
        tests=("cheroot/test", "-p", "cheroot.test._pytest_plugin"),
        # For its tests warnings are errors, and a newer pyOpenSSL deprecates what its adapter calls.
        requirements=(
            *("jaraco.context==6.0.1", "jaraco.text==4.0.0", "portend==3.2.1", "pyopenssl==25.3.0"),
            *("pypytools==0.6.2", "pytest-mock==3.15.1", "pytest-rerunfailures==16.1", "requests==2.34.2"),
            *("requests-unixsocket==0.4.1", "requests-toolbelt==1.0.0", "trustme==1.2.1", "cryptography==45.0.7"),
        ),
    ),
    Software(
        "Werkzeug",
        "3.1.9",
        tests=("tests",),
        requirements=(
            *("cryptography==49.0.0", "ephemeral-port-reserve==1.1.4", "pytest-timeout==2.4.0", "watchdog==6.0.0"),
        ),
        quick=("tests/test_serving.py", "tests/middleware/test_http_proxy.py", "-k", "not reloader"),
    ),
    Software(
        "pyftpdlib",
        "2.2.0",
        # With every kind of file OpenSSL refuses to end the connection of an empty listing ("shutdown while in init").
        # That test leaves its server running, beside which the next tests fail now and then or crash pyOpenSSL.
        tests=("tests", "--deselect=tests/test_functional_ssl.py::TestFtpListingCmdsTLSMixin::test_nlst"),
        requirements=(
            *("psutil==7.1.3", "pyopenssl==26.3.0", "pytest-instafail==0.5.0", "pytest-xdist==3.8.0", "setuptools"),
            "pyasyncore; python_version >= '3.12'",
            "pyasynchat; python_version >= '3.12'",
        ),
    ),
    Software(
        "aiosmtpd",
        "1.4.6",
        tests=("aiosmtpd/tests",),
        requirements=("pytest-asyncio==1.4.1", "pytest-mock==3.15.1", "setuptools==78.1.1", "dnspython==2.8.0"),
    ),
    Software(
        "httplib2",
        "0.32.1",
        tests=("tests", "--ignore=tests/_TODO_legacy", "--noconftest", "--timeout=17"),
        requirements=("cryptography==49.0.0", "pysocks==1.7.1", "pytest-timeout==2.4.0", "pytest-forked==1.6.0"),
    ),
    Software("imaplib", "", package="python", session="imap.py", services=("Dovecot",)),
    Software(
        "stdlib",
        "",
        package="python",
        tests=STDLIB,
        variables={"RIOECHO_STDLIB": "yes"},
        wanted={
            "testReadAfterTimeout": "it requires that a file is dead after a timeout",
            "test_name_closed_socketio": "it requires that the repr is that of an io.BufferedReader",
        },
        quick=STDLIB_CLIENTS,
    ),
    Software(
        "asyncio",
        "",
        package="python",
        drop_in="streams",
        tests=tuple(f"test_asyncio.{name}" for name in STDLIB_STREAMS),
        variables={"RIOECHO_STDLIB": "yes"},
        wanted={
            "test_readline_limit": OVER_LIMIT,
            "test_readline_limit_with_existing_data": OVER_LIMIT,
            "test_pause_reading": PAUSED,
        },
        quick=("test_asyncio.test_streams", "test_asyncio.test_pep492"),
    ),
    Software(
        "redis",
        "8.1.0",
        drop_in="streams",
        tests=(
            *(f"tests/test_asyncio/test_{name}.py" for name in REDIS),
            *("--redis-url=redis://127.0.0.1:$REDIS_PORT/0", "--sentinels=$REDIS_SENTINELS"),
            *("-m", "not redismod and not onlycluster and not ssl"),
        ),
        requirements=("numpy==2.4.6", "packaging==26.4", "pytest-asyncio==1.4.1", "pytest-timeout==2.4.0"),
        services=("Redis",),
        failing={  # with Redis 7.0
            "test_acl_getuser_setuser": "this Redis leaves out a rule that changes nothing",
            "test_acl_log": "it counts the refusal of CLIENT SETINFO, which Redis has from version 7.2 on",
        },
        seconds=100,
    ),
    Software(
        "aiomysql",
        "0.3.2",
        drop_in="streams",
        tests=("tests", "--mysql-unix-socket=unix=$MARIADB_SOCKET", "--mysql-address=tls=127.0.0.1:$MARIADB_PORT"),
        # The versions that it names itself. With a later PyMySQL other types and escapes than its tests expect are
        # returned, and with a later pytest a coroutine is no fixture.
        pytest="pytest==8.4.2",
        requirements=("PyMySQL==1.1.2", "SQLAlchemy==1.3.24", "uvloop==0.22.1", "cryptography==49.0.0"),
        services=("MariaDB",),
        variables={"MYSQL_ROOT_PASSWORD": ""},  # else a file of options says "password = None"
    ),
    Software(
        "aioftp",
        "0.28.3",
        drop_in="streams",
        tests=("tests",),
        requirements=("async_timeout", "pytest-asyncio==1.4.1", "pytest-mock==3.15.1", "siosocks", "trustme==1.2.1"),
    ),
]
