"""Strategies for random calls of the reading methods, which support/agreement.py compares with the oracle."""

from support.properties import EXAMPLES, HealthCheck, settings, st

deterministic = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=list(HealthCheck),
)

sizes = st.integers(0, 12) | st.sampled_from([40, 300])
chunks = st.text("ab\r\n;\x00\x01\x02", max_size=20).map(str.encode) | st.sampled_from(
    [b"x" * 50, b"\n" * 9, b"\r\n\r\n", b"aab" * 9]
)
separators = st.sampled_from([b"\n", b"\r\n", b";", b"aab", b"aa", b"\r\n\r\n"])

#: The reading methods whose result does not depend on the size of a read(2), and their arguments.
READS = {
    "readline": (),
    "readline limit": (sizes,),
    "read": (st.integers(-1, 12) | st.sampled_from([40, 300]),),
    "readexactly": (sizes,),
    "readuntil": (separators | st.lists(separators, min_size=1, max_size=3).map(tuple),),
    "readuntil limit": (separators, st.integers(1, 40)),
    "readframe": (st.integers(1, 2), st.sampled_from(["big", "little"])),
    "skip": (sizes,),
    "skipline": (),
    "unread": (chunks,),
}
#: The entering and leaving of frame(). "leave": the depth, modulo that of the open blocks, and whether it is undone.
BLOCKS = {"begin": (), "leave": (st.integers(-3, -1), st.booleans())}


def step(table):
    return st.one_of([st.tuples(st.just(name), *arguments) for name, arguments in table.items()])
