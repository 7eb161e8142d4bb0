"""The model: one shard, three workers with their databases, a client for each saga, and faults.

A state is packed into one integer: a front, the bases of the three services, the faults left. A
*front* is what the shard and the letters are: a still of the shard's table, the letters that
travel, what became of the workers, which clients know their answer. What can happen in a front is
worked out once (`of_front`, `of_service`) and then looked up.

Who can do what:

- A client asks at any time; when nobody waits for it any more it asks again at once. So a lost or
  late start is one that comes later, and a repeat that comes while the first waits changes nothing
  (`rules.probe`). A cancel comes at any time, once; a lost one is one that never comes.
- Letters arrive in any order. That a command comes twice is a fault. So is that what travels of
  the current command is lost or late: the attempt's time runs out, and the letter is an old one.
  A lost one is one that never arrives.
- A service says what it likes of a command that is new to it. That its answer is never heard is a
  lost answer or a crash.
- A shard that crashes keeps its journal; what travels to it is lost. It does so at any moment. That
  a command was not sent is as if it never arrives; that a reply was not sent is a move of its own.
  A batch is one event.
- A worker that crashes takes with it what travels to it and from it, and another comes at once. In
  a case with `absences` the shard sees that late, its answers arrive until then, the next worker
  comes late, and so do all workers after a crash of the shard.
- An attempt's time also runs out, without a fault, when nothing of it travels any more. A
  deadline passes at any time, and so does time in which no timer is due: then the shard takes the
  credit of forgotten commands back.
- A word lost between Begun and Proceed comes back as `unavailable`, from a worker that has waited
  for it in vain; the heartbeat that gives it its credit back follows at once.

What is left out, because something that is not left out shows the same:

- Old letters are a set. A second copy of an old command finds what the first has left, and says
  the same. That an old command fails, or an old letter is lost, is as if it still travelled:
  nobody waits for it. It was sent twice when it was new.
- An answer comes twice nowhere: each is read again where it was read, which must change nothing.
- What is about a step that is closed (declined or compensated in the journal, or of a saga that
  is final) is let go of. The database was the same before the shard heard that it is closed, and
  there the late command was tried; its answer is tried here, and must change nothing.
- An old letter need not arrive. So what is reached with fewer of them is reached with more, and
  the state with more stands for the other one (`search`).
- An old answer that the shard absorbs now, and one that is no outcome, is let go of: what it says
  is known, and the shard never forgets it.
- A worker crashes only while something of it travels or is waited for. All workers that a new
  shard process does not know come together.
"""

from typing import Final

from sagacity import wire
from sagacity.barrier import Barrier
from sagacity.ids import ACTION
from shard.phases import NEW, RUNNING
from shard.sagas import BACKING_OFF, OUT
from tests.exhaustive import rules
from tests.exhaustive.cases import (
    CANCEL,
    CRASH,
    DUPLICATE,
    FAULT_BITS,
    FAULTS,
    LOSS,
    OK,
    SAGA_IDS,
    SERVICES,
    Case,
    Wrong,
)
from tests.exhaustive.fronts import (
    BUDGET_BITS,
    DEAD,
    GONE,
    UP,
    Front,
    Move,
    Post,
    Words,
    but,
    pack,
    spent,
    unpack,
    with_status,
    without,
)
from tests.exhaustive.letters import (
    ALONE,
    ANSWER,
    COMMAND,
    PROCEED,
    TO_WORKER,
    Letter,
)
from tests.exhaustive.rules import Reached
from tests.exhaustive.service_table import Performed, ServiceTable
from tests.exhaustive.shard_table import (
    ASK,
    BEGAN,
    CAME,
    DEADLINE,
    OVER,
    READ,
    REPLACED,
    RETRY_DUE,
    TIME,
    WENT,
    Key,
    Parts,
    ShardTable,
    Still,
    Turn,
)
from tests.exhaustive.shard_table import CANCEL as CANCELS

NONE: Final = -1  # no fault
NO_OUTCOMES: Final = frozenset(
    (wire.REFUSED_FENCED, wire.REFUSED_COMPENSATED, wire.REFUSED_FORGOTTEN)
)


class Tables:
    """What the real parts say. Cases of as many sagas may share them: no bound is in there.

    Args:
        sagas: how many.
        parts: of the engine.
        barrier: of the services.
    """

    def __init__(
        self, sagas: int, parts: Parts | None = None, barrier: type[Barrier] = Barrier
    ) -> None:
        self.shard = ShardTable(sagas, parts)
        self.services = [ServiceTable(name, sagas, barrier) for name in SERVICES]


class Model:
    """What can happen, from the beginning on.

    Args:
        case: its bounds.
        tables: of its number of sagas; where none are given it makes its own.
        sends_first: a planted bug: the loop sends before it commits.
    """

    def __init__(
        self, case: Case, tables: Tables | None = None, *, sends_first: bool = False
    ) -> None:
        tables = tables or Tables(case.sagas)
        self.case = case
        self.shard = tables.shard
        self.services = tables.services
        self.fronts: list[Front] = []
        self.left: list[list[int]] = []  # by cost and faults left; -1 where there are too few
        self.probed: dict[str, int] = dict.fromkeys(rules.PROBES, 0)
        self._post = Post()
        self._front_ids: dict[Front, int] = {}
        self._core_ids: dict[Front, int] = {}
        self._cores: list[tuple[int, int]] = []
        self._of_front: dict[tuple[int, int], list[Move]] = {}
        self._of_service: dict[tuple[int, int, int], list[Move]] = {}
        self.absorbed = {"refused": 0, "failed": 0, "twice": 0}  # letters that a shard let go of
        self._spent: dict[tuple[int, Letter], bool] = {}
        self._probed: set[int] = set()
        self._costs: dict[tuple[int, ...], int] = {}
        self._sends_first = sends_first
        self._faults = [
            (NONE, *(k for k in range(len(FAULTS)) if budget >> FAULT_BITS * k & 3))
            for budget in range(1 << BUDGET_BITS)
        ]
        self._cost()

    def root(self) -> int:
        """Give the state at the beginning; two sagas have been asked for then."""
        still = self.shard.root
        for name in SERVICES:
            still = self.shard.turn(still, (CAME, (name,))).still
        front = Front(still, (), (UP,) * len(SERVICES), (False,) * self.case.sagas)
        if self.case.sagas > 1:
            for saga in range(self.case.sagas):
                turn = self.shard.turn(front.still, (ASK, saga))
                front = self._after(front, turn, front.letters)
        bases = [each.root for each in self.services]
        return pack(self._intern(front), bases, self.case.budget())

    def next(self, state: int) -> list[tuple[int, Move]]:
        """Give what can happen in a state, and where it leads."""
        front, bases, budget = unpack(state)
        found: list[tuple[int, Move]] = []
        for fault in self.may_happen(budget):
            for move in self.of_front(front, fault):
                left = self.left[move.cost][budget]
                if left >= 0:
                    found.append((pack(move.front, bases, left), move))
        for at, base in enumerate(bases):
            for move in self.of_service(front, at, base):
                changed = [*bases[:at], move.base, *bases[at + 1 :]]
                found.append((pack(move.front, changed, budget), move))
        return found

    def may_happen(self, budget: int) -> tuple[int, ...]:
        """Give the faults that are left, and NONE."""
        return self._faults[budget]

    def split(self, front: int) -> tuple[int, int]:
        """Give what a front is without its old letters, and these as bits."""
        return self._cores[front]

    def is_final(self, front: int) -> bool:
        """Say whether every saga is final and every client knows it."""
        return all(self.fronts[front].knows)

    # -- what the shard, the network and faults do ----------------------------------------------

    def of_front(self, at: int, fault: int) -> list[Move]:
        """Give what can happen in a front, whatever the databases hold.

        Args:
            at: the front.
            fault: NONE, or the one with which it begins.
        """
        key = (at, fault)
        found = self._of_front.get(key)
        if found is None:
            front = self.fronts[at]
            still = self.shard.stills[front.still]
            if front.still not in self._probed:
                self._probed.add(front.still)
                rules.probe(self.shard, front.still, self.probed)
            moves = (
                *self._clients(front, still, fault),
                *self._arrivals(front, still, fault),
                *self._timers(front, still, fault),
                *self._workers(front, still, fault),
                *self._network(front, fault),
            )
            unlike = {each[:-1]: each for each in reversed(moves)}  # but for their words
            found = [move for move in unlike.values() if move.front != at]
            self._of_front[key] = found
        return found

    def _clients(self, front: Front, still: Still, fault: int) -> list[Move]:
        found: list[Move] = []
        for saga, facts in enumerate(still.sagas):
            name = SAGA_IDS[saga]
            if facts.phase == NEW:
                words = (f"the client asks for {name}",)
                found += self._shard_turn(front, (ASK, saga), front.letters, words, fault)
            if fault == CANCEL and facts.phase == RUNNING:
                words = (f"the client cancels {name}",)
                found += self._shard_turn(
                    front, (CANCELS, saga), front.letters, words, CANCEL, costs=(CANCEL,)
                )
        return found

    def _arrivals(self, front: Front, still: Still, fault: int) -> list[Move]:
        found: list[Move] = []
        for letter_id in dict.fromkeys(front.letters):
            letter = self._post.letters[letter_id]
            if letter.kind not in (ANSWER, ALONE) or letter.service not in still.workers:
                continue
            kind = READ if letter.kind == ANSWER else BEGAN
            rest = without(front.letters, letter_id)
            found += self._shard_turn(
                front, (kind, letter), rest, ("the shard reads ", letter), fault
            )
            if letter.kind == ANSWER and fault == NONE:
                self._read_again(front.still, letter)
        return found

    def _read_again(self, at: int, letter: Letter) -> None:
        """An answer comes twice: the second time it must change nothing."""
        then = self.shard.turn(at, (READ, letter)).still
        again = self.shard.turn(then, (READ, letter._replace(latest=False)))
        if again.wrote:
            raise Wrong(f"B1  an answer that comes twice counts once: {letter.told()}")
        self.absorbed["twice"] += 1

    def _timers(self, front: Front, still: Still, fault: int) -> list[Move]:
        found: list[Move] = []
        for saga, facts in enumerate(still.sagas):
            name = SAGA_IDS[saga]
            if facts.phase == RUNNING and self.case.deadlines:
                words = (f"the shard sees the deadline of {name}",)
                found += self._shard_turn(front, (DEADLINE, saga), front.letters, words, fault)
            if facts.where == BACKING_OFF:
                words = (f"the shard tries again for {name}",)
                found += self._shard_turn(front, (RETRY_DUE, saga), front.letters, words, fault)
            if facts.where == OUT and front.workers[facts.step - 1] == UP:
                found += self._time_out(front, saga, fault)
        if fault == NONE:
            words = ("time passes",)
            found += self._shard_turn(front, (TIME, None), front.letters, words, fault)
        return found

    def _time_out(self, front: Front, saga: int, fault: int) -> list[Move]:
        """What travels of the current command is lost, or comes too late: one fault."""
        key, name = (OVER, saga), SAGA_IDS[saga]
        letters = [self._post.letters[each] for each in front.letters]
        late = [each for each in letters if each.saga == saga and each.latest]
        if not late:
            words: Words = (f"the shard sees an attempt of {name} time out",)
            return self._shard_turn(front, key, front.letters, words, fault)
        if fault != LOSS:
            return []
        reached = Reached.B2 if late[0].kind in (COMMAND, ALONE) else 0
        words = (f"the shard sees an attempt of {name} time out, lost or late is the ", late[0])
        return [
            move._replace(reached=move.reached | reached)
            for move in self._shard_turn(front, key, front.letters, words, LOSS, costs=(LOSS,))
        ]

    def _workers(self, front: Front, still: Still, fault: int) -> list[Move]:
        found: list[Move] = []
        for at, name in enumerate(SERVICES):
            of_it = {i for i in front.letters if self._post.letters[i].service == name}
            waited_for = any(s.where == OUT and s.step == at + 1 for s in still.sagas)
            if front.workers[at] == UP:
                if fault == CRASH and name in still.workers and (of_it or waited_for):
                    found += self._worker_crashes(front, at, of_it)
            elif front.workers[at] == DEAD:
                words = (f"the shard sees that the worker of {name} is gone",)
                gone = front._replace(workers=with_status(front.workers, at, GONE))
                found += self._shard_turn(
                    gone, (WENT, name), but(front.letters, of_it), words, fault
                )
            else:
                here = front._replace(workers=with_status(front.workers, at, UP))
                words = (f"the shard hears a worker of {name}",)
                found += self._shard_turn(here, (CAME, (name,)), front.letters, words, fault)
        unknown = tuple(
            name
            for at, name in enumerate(SERVICES)
            if front.workers[at] == UP and name not in still.workers
        )
        if unknown:
            words = ("the shard hears its workers",)
            found += self._shard_turn(front, (CAME, unknown), front.letters, words, fault)
        if fault == CRASH:
            found.append(self._shard_crashes(front, still))
        return found

    def _worker_crashes(self, front: Front, at: int, of_it: set[int]) -> list[Move]:
        words = (f"the worker of {SERVICES[at]} crashes",)
        if not self.case.absences:
            words = (f"{words[0]}, another comes",)
            rest = but(front.letters, of_it)
            return self._shard_turn(
                front, (REPLACED, SERVICES[at]), rest, words, CRASH, costs=(CRASH,)
            )
        lost = {i for i in of_it if self._post.letters[i].kind in TO_WORKER}
        workers = with_status(front.workers, at, DEAD)
        crashed = front._replace(letters=but(front.letters, lost), workers=workers)
        return [self._move(crashed, words, CRASH)]

    def _shard_crashes(self, front: Front, still: Still) -> Move:
        """The shard crashes while it waits."""
        crashed = self._after_crash(front, front.still, front.letters)
        started = any(facts.phase != NEW and not facts.is_final for facts in still.sagas)
        reached = Reached.A1 if started else 0
        return self._move(crashed, ("the shard crashes",), CRASH, reached=reached)

    def _network(self, front: Front, fault: int) -> list[Move]:
        found: list[Move] = []
        for letter_id in dict.fromkeys(front.letters):
            letter = self._post.letters[letter_id]
            rest = without(front.letters, letter_id)
            if fault == LOSS and letter.kind in (ALONE, PROCEED) and letter.latest:
                refused = letter._replace(kind=ANSWER, outcome=wire.REFUSED_UNAVAILABLE, body=b"")
                lost = front._replace(letters=self._post.plus(rest, refused))
                found.append(self._move(lost, (letter, " is lost, given back"), LOSS))
            if fault == DUPLICATE and letter.kind == COMMAND and letter.latest:
                twice = front._replace(letters=self._post.plus(front.letters, letter))
                found.append(self._move(twice, (letter, " comes twice"), DUPLICATE))
        return found

    # -- what services do -----------------------------------------------------------------------

    def of_service(self, at: int, service: int, base: int) -> list[Move]:
        """Give what a service can do in a front, with such a database."""
        key = (at, service, base)
        found = self._of_service.get(key)
        if found is None:
            found = self._of_service[key] = []
            front = self.fronts[at]
            if front.workers[service] == UP:
                for letter_id in dict.fromkeys(front.letters):
                    letter = self._post.letters[letter_id]
                    if letter.kind in (COMMAND, PROCEED) and letter.step == service + 1:
                        rest = without(front.letters, letter_id)
                        found += self._performs(front, rest, letter, base)
                        self._check_fence(front.still, letter, base)
        return found

    def _performs(
        self, front: Front, rest: tuple[int, ...], letter: Letter, base: int
    ) -> list[Move]:
        """A service performs a command; its handler, if it is asked at all, says what it likes."""
        table = self.services[letter.step - 1]
        found: dict[Performed, Move] = {}
        for says in self.case.choices(letter.step, letter.direction):
            done = table.perform(base, letter, says)
            if done in found:
                continue
            if done.outcome == wire.FAILED and letter.kind == COMMAND and not letter.latest:
                continue
            answer = letter._replace(kind=ANSWER, outcome=done.outcome, body=done.body)
            to = self._settled(front._replace(letters=self._post.plus(rest, answer)))
            before, after = table.bases[base], table.bases[done.base]
            reached = rules.reached_by_service(letter, done, before, after)
            words = (letter.service, " performs ", letter, f": {wire.OUTCOMES[done.outcome]}")
            plain = letter.latest or letter.kind != COMMAND
            found[done] = Move(self._intern(to), done.base, 0, reached, plain, words)
        return list(found.values())

    def _check_fence(self, at: int, letter: Letter, base: int) -> None:
        """Were the command of an older epoch, it would be refused, and the refusal move nothing."""
        done = self.services[letter.step - 1].perform(base, letter, OK, fenced=True)
        answer = letter._replace(kind=ANSWER, outcome=done.outcome, body=b"")
        self._is_spent(at, answer)
        if done.outcome != wire.REFUSED_FENCED or done.base != base:
            raise Wrong(f"E1  a command of an older epoch is refused: {letter.told()}")
        self.probed[rules.FENCED] += 1

    # -- what becomes of a front ----------------------------------------------------------------

    def _shard_turn(
        self,
        front: Front,
        key: Key,
        letters: tuple[int, ...],
        words: Words,
        fault: int,
        costs: tuple[int, ...] = (),
    ) -> list[Move]:
        """The shard takes an event: all goes well, a reply is lost, or it crashes in between."""
        still = self.shard.stills[front.still]
        turn = self.shard.turn(front.still, key)
        found = []
        if fault == NONE or costs:
            reached = rules.reached_by_shard(still, self.shard.stills[turn.still], key, turn)
            if key[0] == CANCELS:
                reached |= self._meets_last_success(front, key[1])
            after = self._after(front, turn, letters, key)
            found.append(self._move(after, words, *costs, reached=reached))
        if turn.heard and (fault == LOSS or costs):
            after = self._after(front, turn, letters, key)
            unheard = self._asked(after._replace(knows=front.knows))
            cut = (*words, "; its reply is lost")
            found.append(self._move(unheard, cut, *costs, LOSS, reached=Reached.A2))
        if fault == CRASH or costs:
            found += self._crashes_meanwhile(front, turn, key, letters, words, costs)
        return found

    def _crashes_meanwhile(
        self,
        front: Front,
        turn: Turn,
        key: Key,
        letters: tuple[int, ...],
        words: Words,
        costs: tuple[int, ...],
    ) -> list[Move]:
        found = []
        if turn.heard:
            crashed = self._after_crash(front, turn.still, letters)
            cut = (*words, "; the shard crashes before it sends")
            found.append(self._move(crashed, cut, *costs, CRASH, reached=Reached.A1))
        if turn.wrote and self._sends_first:
            sent = self._after(front, turn._replace(still=front.still), letters, key)
            crashed = self._after_crash(sent, front.still, sent.letters)
            cut = (*words, "; the shard crashes before it commits")
            found.append(self._move(crashed, cut, *costs, CRASH))
        return found

    def _after(
        self, front: Front, turn: Turn, letters: tuple[int, ...], key: Key | None = None
    ) -> Front:
        """Give a front after a turn that went well."""
        letters = self._post.aged(letters, turn.aged)
        for letter in turn.sent:
            if front.workers[letter.step - 1] == UP:
                letters = self._post.plus(letters, letter)
        if turn.wanted and key is not None and front.workers[key[1].step - 1] == UP:
            letters = self._post.plus(letters, key[1]._replace(kind=PROCEED))
        knows = list(front.knows)
        for saga in turn.heard:
            knows[saga] = True
        return self._asked(Front(turn.still, letters, front.workers, tuple(knows)))

    def _asked(self, front: Front) -> Front:
        """Every client that nobody waits for asks again, as soon as there is something to say."""
        for saga, facts in enumerate(self.shard.stills[front.still].sagas):
            waits = front.knows[saga] or facts.awaited or facts.stuck
            if facts.phase != NEW and not waits:
                turn = self.shard.turn(front.still, (ASK, saga))
                if facts.is_final and saga not in turn.heard:
                    raise Wrong(f"{rules.PROBES[2]}: {SAGA_IDS[saga]}")
                return self._after(front, turn, front.letters)
        return self._settled(front)

    def _after_crash(self, front: Front, still: int, letters: tuple[int, ...]) -> Front:
        """Give a front after a crash of the shard: connections are cut, commands run on."""
        turn = self.shard.restarted(still)
        of = self._post.letters
        cut = {i for i in letters if of[i].kind != COMMAND or front.workers[of[i].step - 1] == DEAD}
        letters = self._post.aged(but(letters, cut), turn.aged)
        workers = tuple(GONE if each == DEAD else each for each in front.workers)
        after = Front(turn.still, letters, workers, front.knows)
        if not self.case.absences:
            turn = self.shard.turn(turn.still, (CAME, SERVICES))
            return self._after(after, turn, letters)
        return self._asked(after)

    def _settled(self, front: Front) -> Front:
        """Let go of letters that will never do anything."""
        gone = {i for i in set(front.letters) if self._is_spent(front.still, self._post.letters[i])}
        return front._replace(letters=but(front.letters, gone)) if gone else front

    def _is_spent(self, at: int, letter: Letter) -> bool:
        found = self._spent.get((at, letter))
        if found is None:
            found = self._spent[at, letter] = self._would_do_nothing(at, letter)
        return found

    def _would_do_nothing(self, at: int, letter: Letter) -> bool:
        still = self.shard.stills[at]
        closed = still.sagas[letter.saga].is_closed(letter.step)
        if letter.kind == COMMAND:
            return closed
        refused = letter.outcome in NO_OUTCOMES
        if letter.kind != ANSWER or letter.service not in still.workers:
            return False
        if letter.latest and not refused and not closed:
            return False
        turn = self.shard.turn(at, (READ, letter))
        failed = letter.outcome == wire.FAILED
        if turn.wrote and (refused or failed):
            raise Wrong(f"{rules.NO_OUTCOME}: {letter.told()}")
        if refused:
            self.absorbed["refused"] += 1
        elif failed:
            self.absorbed["failed"] += 1
        is_suspect = (letter.step, letter.direction) == still.sagas[letter.saga].suspect
        return turn.still == at and not is_suspect

    def _meets_last_success(self, front: Front, saga: int) -> int:
        last = any(
            each.saga == saga
            and each.kind == ANSWER
            and each.command[1:] == (len(SERVICES), ACTION)
            and each.outcome == wire.OK
            for each in (self._post.letters[i] for i in front.letters)
        )
        return Reached.B14 if last else 0

    def _move(self, to: Front, words: Words, *costs: int, reached: int = 0) -> Move:
        cost = self._cost(*costs)
        plain = not cost and not self._post.wants_old(words)
        return Move(self._intern(to), -1, cost, reached, plain, words)

    def _cost(self, *kinds: int) -> int:
        """Give the row of `left` for faults of these kinds; it is made where there is none."""
        found = self._costs.get(kinds)
        if found is None:
            found = self._costs[kinds] = len(self.left)
            self.left.append([spent(budget, kinds) for budget in range(1 << BUDGET_BITS)])
        return found

    def _intern(self, front: Front) -> int:
        found = self._front_ids.get(front)
        if found is None:
            found = self._front_ids[front] = len(self.fronts)
            self.fronts.append(front)
            core, old = self._post.split(front)
            self._cores.append((self._core_ids.setdefault(core, len(self._core_ids)), old))
        return found
