"""Checker: the twelve invariants of the proof as pure rules over a small typed Evidence."""
