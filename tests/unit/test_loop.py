"""Loop: durable before visible, answers before timers, time that could not be used is nobody's.

The ports are twins: the journal writes down when a row is durable and can be slow or fail, the
links check each thing that they are asked to send against the rows that are durable by then.
"""

from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import pytest

from cluster.clock import ManualClock
from sagacity.ids import count_of
from sagacity.slots import SLOTS
from sagacity.wire import (
    CANCEL,
    DECLINED,
    FAILED,
    OK,
    REFUSED_FENCED,
    SHOW,
    START,
    SUBMIT,
    Command,
    Reply,
    Request,
    Witness,
    encode,
    pack,
    unpack,
)
from services.checkout import checkout
from shard import phases
from shard.admission import Admission
from shard.effects import Effects
from shard.engine import Engine
from shard.entries import AttemptEnded, Entry, Finished, Opened, Started, TurnedBack
from shard.events import Answered, Event, Requests, WorkerCame, WorkerLives, WorkerWent
from shard.finished import FinishedInMemory
from shard.journal import JournalFailed, MemoryJournal, Receipt
from shard.loop import RECEIVES_BEFORE_TIMERS, WAIT_MAX_NS, Fenced, Loop, Received
from shard.retries import RetryBudget
from shard.sagas import MS, Definition
from shard.state import State
from shard.tally import PlainTally
from tests.unit.canned import SERVICES, answer
from tests.unit.world import CLIENT, CLUSTER_ID, PRICES, answer_to, order

ATTEMPT_MS = 3_000
DEADLINE_MS = 30_000
DEFINITIONS = {checkout.name: Definition(checkout, checkout.steps[0].retry or _retry)} if (
    _retry := __import__("sagacity.saga", fromlist=["Retry"]).Retry()
) else {}
