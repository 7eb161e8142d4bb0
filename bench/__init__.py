"""Benches: load generators, floors, figures. May import anything; nothing imports them."""
