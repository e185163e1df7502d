"""An agent starts, watches and ends the child process of one worker, and keeps a spare ready.

It imports no PyTorch, so it starts within a second and a child cannot crash it. Its methods are
called from several threads.
"""

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from cluster.workers.messages import Ended, Order, Site, Status
from cluster.workers.process import Child

PATIENCE_SECONDS = 1.0
"""How long `status` waits for a change."""
SILENCE_SECONDS = 30.0
"""An agent that gets no call for so long ends its child: another group may be training by then."""
CUT_OFF_SECONDS = 10.0
"""How often a silent agent looks whether it can still reach the cluster."""


class Agent:
    """The agent of one worker.

    Args:
        site: The node, address, process and GPUs of this agent.
        preparation: What a child runs before it waits for an order, see `Child`.
        keep_spare: Whether to start a second child once the first has trained a step.
    """

    def __init__(self, site: Site, preparation: bytes, *, keep_spare: bool) -> None:
        self._site, self._preparation, self._keep_spare = site, preparation, keep_spare
        # The kernel kills a child when the thread that started it ends, so one thread that lives
        # as long as the agent starts them all.
        self._starter = ThreadPoolExecutor(1, "starts children")
        self._changed = threading.Condition()
        self._child: Child | None = None
        self._spare: Child | None = None
        self._asked = time.monotonic()
        self._generation = 0
        self._stop_requested = False
        # Of the child that was ended because nobody asked for it.
        self._given_up: Status | None = None
        self._closed = threading.Event()
        self._have_spare()
        self._watch = threading.Thread(target=self._end_when_forgotten, daemon=True)
        self._watch.start()

    def site(self) -> Site:
        return self._site

    def free_port(self) -> int:
        """A port that is free on this node now, for rank 0's store."""
        with socket.socket() as probe:
            probe.bind((self._site.host, 0))
            return int(probe.getsockname()[1])

    def start(self, order: Order) -> None:
        """Give the order to the waiting child, after ending any child of an older generation."""
        self._asked = time.monotonic()
        self._stop_requested = False
        self._end_child()
        child = self._starter.submit(self._take_spare).result()
        with self._changed:
            self._child, self._generation, self._given_up = child, order.generation, None
            if self._stop_requested:  # It came while the child was being started.
                child.page.request_stop()
            self._changed.notify_all()
        child.obey(order)

    def status(self, known: Status | None = None) -> Status:
        """The child's status, once it differs from `known` or after `PATIENCE_SECONDS`."""
        self._asked = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._is_new(known), PATIENCE_SECONDS)
            status = self._status()
        self._asked = time.monotonic()
        beat = status.beat
        if self._keep_spare and self._spare is None and beat.step > beat.began >= 0:
            self._have_spare()
        return status

    def is_cut_off(self) -> bool:
        """Whether the cluster is out of reach of this agent, which then must not stay."""
        return False

    def request_stop(self) -> None:
        """Ask the child to save a checkpoint and exit after its next step."""
        with self._changed:
            self._stop_requested = True
            if self._child is not None:
                self._child.page.request_stop()

    def stacks(self) -> str:
        """The stack of every thread of the child."""
        with self._changed:
            return "" if self._child is None else self._child.stacks()

    def clear(self) -> None:
        """Kill the child, if there is one, wait until it has exited, and start the next one, which
        does its imports while it waits for an order.
        """
        self._end_child()
        self._given_up = None
        self._have_spare()

    def close(self) -> None:
        """Kill every process that this agent has started."""
        self._closed.set()
        self._end_child()
        self._starter.shutdown()
        with self._changed:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()

    def _end_child(self, error: str = "") -> None:
        """Kill the child, if there is one. With an `error`, `status` tells it from now on."""
        with self._changed:  # No other thread may read a closed child.
            if error and self._child is not None:
                status = self._status()
                # No fault of this worker, or of its node.
                ended = status.ended or Ended(how="killed", error=error, of_group=True)
                self._given_up = replace(status, ended=ended)
            child, self._child = self._child, None
        if child is not None:
            child.close()

    def _status(self) -> Status:
        child, spare = self._child, self._spare
        ready = spare is not None and spare.ready
        if child is None:
            return replace(self._given_up or Status(generation=self._generation), spare=ready)
        return Status(
            generation=self._generation,
            beat=child.page.read(),
            ended=child.ended(),
            suspended=child.suspended(),
            spare=ready,
            milestones=dict(child.milestones),
        )

    def _is_new(self, known: Status | None) -> bool:
        child, spare = self._child, self._spare
        if known is None or known.generation != self._generation:
            return True
        if child is None:
            return known != self._status()
        return (
            (known.ended is None and child.has_ended)
            or len(known.milestones) != len(child.milestones)
            or (spare is not None and spare.ready != known.spare)
        )

    def _have_spare(self) -> None:
        self._starter.submit(self._spawn).result()

    def _spawn(self) -> Child:
        """The spare; a new one if there is none, or if it was killed while it waited."""
        if self._spare is not None and not self._spare.alive:
            dead, self._spare = self._spare, None
            dead.close()
        if self._spare is None:
            self._spare = Child(self._preparation, self._changed)
        return self._spare

    def _take_spare(self) -> Child:
        child, self._spare = self._spawn(), None
        return child

    def _end_when_forgotten(self) -> None:
        while not self._closed.wait(PATIENCE_SECONDS):
            if time.monotonic() - self._asked > SILENCE_SECONDS:
                self._end_child(f"its agent got no call for {SILENCE_SECONDS:.0f} s and ended it")
                if self.is_cut_off():
                    os._exit(1)  # The kernel ends the spare.
                self._closed.wait(CUT_OFF_SECONDS)
