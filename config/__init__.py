"""Configuration: what a cluster agrees on, what a process may choose, and the demo catalog."""
