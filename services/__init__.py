"""The demo's saga and its three services; each also shows a user how to write one."""
