"""Replies: how a request is answered, or refused with an error of the one table. Pure."""

from sagacity.errors import SagacityError
from sagacity.wire import Reply, pack, pack_error, unpack
from shard.effects import Effects
from shard.sagas import Waiter


def answer(fx: Effects, waiter: Waiter, body: bytes) -> None:
    """Answer a request, with in_reply_to after type where it had a msg_id."""
    if waiter.msg_id is not None:
        body = pack(in_reply(unpack(body), waiter.msg_id))
    fx.reply(waiter.origin, Reply(waiter.request, None, body))


def refuse(fx: Effects, waiter: Waiter, error: SagacityError) -> None:
    """Answer a request with an error of the one table."""
    if waiter.msg_id is None:
        body = pack_error(error)
    else:
        body = pack(in_reply(error.body(), waiter.msg_id))
    fx.reply(waiter.origin, Reply(waiter.request, error.code, body))


def in_reply(body: dict[str, object], msg_id: int) -> dict[str, object]:
    """Put in_reply_to after type."""
    return {"type": body["type"], "in_reply_to": msg_id, **body}
