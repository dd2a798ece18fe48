"""A session with MariaDB through PyMySQL: every kind of result, large ones, errors, and an end in the middle."""

import os
import ssl
import threading

import pymysql
import pymysql.cursors
import pytest

PORT = int(os.environ["MARIADB_PORT"])


def context():
    return ssl.create_default_context(cafile=os.environ["MARIADB_CERTIFICATE"])


WAYS = {
    "tcp": lambda: {"host": "127.0.0.1", "port": PORT},
    "unix": lambda: {"unix_socket": os.environ["MARIADB_SOCKET"]},
    "tls": lambda: {"host": "127.0.0.1", "port": PORT, "ssl": context()},
}


@pytest.fixture(params=WAYS)
def connect(request):
    """Return a function that opens a connection in each way. All are closed after the test."""
    opened = []

    def open_connection(**options):
        settings = {"user": "root", "database": "test1", "local_infile": True, **WAYS[request.param](), **options}
        opened.append(pymysql.connect(**settings))
        return opened[-1]

    yield open_connection
    for connection in opened:
        if connection.open:
            connection.close()


@pytest.fixture
def cursor(connect):
    return connect().cursor()


@pytest.fixture
def table(cursor):
    cursor.execute("drop table if exists numbers")
    cursor.execute("create table numbers (n int primary key, word varchar(100) character set utf8mb4)")
    return cursor


def one(cursor, query, arguments=None):
    cursor.execute(query, arguments)
    (row,) = cursor.fetchall()
    return row[0] if len(row) == 1 else row


def test_small_queries_share_a_connection(cursor):
    for number in range(500):
        assert one(cursor, "select %s", number) == number


@pytest.mark.parametrize("size", [0, 1, 8191, 65_535, 65_536, 1 << 20, 5_000_000, (1 << 24) - 2, 1 << 24, 20_000_000])
def test_a_blob_comes_whole(cursor, size):
    cursor.execute("select repeat('x', %s)", size)
    ((text,),) = cursor.fetchall()
    assert len(text) == size
    assert not text.strip("x")


@pytest.mark.parametrize("size", [1000, 100_000, 3_000_000])
def test_random_bytes_go_and_come_back(cursor, size):
    data = os.urandom(size)
    assert one(cursor, "select %s", (pymysql.Binary(data),)) == data


def test_many_rows_are_fetched_at_once_and_one_by_one(connect):
    query = "select seq, concat('row ', seq) from seq_1_to_20000"
    cursor = connect().cursor()
    assert cursor.execute(query) == 20_000
    rows = cursor.fetchall()
    assert rows == tuple((n, f"row {n}") for n in range(1, 20_001))
    unbuffered = connect(cursorclass=pymysql.cursors.SSCursor).cursor()
    unbuffered.execute(query)
    assert tuple(unbuffered.fetchall_unbuffered()) == rows


def test_rows_are_inserted_and_rolled_back(table):
    table.executemany("insert into numbers values (%s, %s)", [(n, "wörd 🐢 " * 5) for n in range(1000)])
    assert one(table, "select count(*), max(word) from numbers") == (1000, "wörd 🐢 " * 5)
    table.connection.rollback()
    assert one(table, "select count(*) from numbers") == 0


def test_an_error_leaves_the_connection_usable(table):
    table.execute("insert into numbers values (1, 'a')")
    with pytest.raises(pymysql.err.IntegrityError):
        table.execute("insert into numbers values (1, 'b')")
    with pytest.raises(pymysql.err.ProgrammingError):
        table.execute("selekt")
    assert one(table, "select word from numbers") == "a"


def test_several_results_of_one_query(connect):
    cursor = connect(client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS).cursor()
    cursor.execute("select 1; select 2; select 3")
    results = [cursor.fetchall()]
    while cursor.nextset():
        results.append(cursor.fetchall())
    assert results == [((1,),), ((2,),), ((3,),)]


def test_a_local_file_is_loaded(table, tmp_path):
    path = tmp_path / "numbers"
    path.write_text("".join(f"{n}\tword {n}\n" for n in range(5000)))
    assert table.execute(f"load data local infile '{path}' into table numbers") == 5000
    assert one(table, "select word from numbers where n = 4999") == "word 4999"


def test_a_timeout_ends_the_connection(connect):
    connection = connect(read_timeout=1)
    with pytest.raises(pymysql.err.OperationalError, match="timed out"):
        connection.cursor().execute("select sleep(20)")
    assert not connection.open
    connection.ping(reconnect=True)
    assert one(connection.cursor(), "select 1") == 1


def test_a_timeout_is_for_one_wait(connect):
    cursor = connect(read_timeout=2, cursorclass=pymysql.cursors.SSCursor).cursor()
    cursor.execute("select seq, sleep(0.4), repeat('x', 20000) from seq_1_to_8")
    assert [row[0] for row in cursor.fetchall_unbuffered()] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_killed_connection_is_reported(connect):
    victim, killer = connect(), connect()
    killer.cursor().execute("kill %s", victim.thread_id())
    with pytest.raises((pymysql.err.OperationalError, pymysql.err.InterfaceError)):
        victim.cursor().execute("select 1")


def test_a_query_is_killed_from_another_thread(connect):
    victim, killer = connect(), connect()
    errors = []

    def wait():
        try:
            victim.cursor().execute("select count(*) from seq_1_to_100000000000 where sha2(seq, 512) = 'x'")
        except pymysql.err.MySQLError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    watcher = killer.cursor()
    query = "select count(*) from information_schema.processlist where id = %s and info like '%%sha2(seq%%'"
    while not one(watcher, query, victim.thread_id()):
        pass
    watcher.execute("kill query %s", victim.thread_id())
    thread.join(30)
    assert [error.args[0] for error in errors] == [1317]
    assert one(victim.cursor(), "select 1") == 1
