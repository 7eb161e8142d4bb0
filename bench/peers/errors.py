"""What can go wrong with a peer, each with the exit code of the command that meets it."""


class PeerError(Exception):
    """A peer could not be measured; the text says why."""

    exit_code = 1


class Refused(PeerError):
    """What was asked for cannot be done as asked: an unknown peer, one not set up, a taken port."""

    exit_code = 2
