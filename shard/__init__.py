"""A shard: one process, one thread, one journal; owns the sagas of its slots."""
