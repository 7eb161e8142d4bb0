"""The cluster around router, shards and services: starting, watching, asking, telling."""
