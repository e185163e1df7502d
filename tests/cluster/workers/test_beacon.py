"""The page of memory through which an agent sees its child's progress."""

import mmap
import struct

from cluster.workers.beacon import SIZE, Beacon, Page
from cluster.workers.messages import Beat


def test_a_child_that_is_interrupted_in_a_write_is_seen_as_before() -> None:
    page = Page()
    assert page.read() == Beat()
    beacon = Beacon.on(page.descriptor)
    beacon.enter("step", usual=2.0)
    beacon.stepped(7)
    before = page.read()
    assert (before.phase, before.step, before.usual) == ("step", 7, 2.0)
    shared = mmap.mmap(page.descriptor, SIZE)
    last_turn = struct.calcsize("=Q24sddqqqq")
    for torn in (bytes(last_turn + 8), struct.pack("=Q", 99) + bytes(last_turn)):
        shared[: len(torn)] = torn
        now = page.read()
        assert (now.phase, now.step, now.usual) == ("step", 7, 2.0)
        assert before.seconds <= now.seconds < 60.0, "not since the machine was started"
    beacon.stepped(8)
    assert page.read().step == 8
    page.close()
