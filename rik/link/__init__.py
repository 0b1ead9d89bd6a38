"""Links carry messages and streams between roles: in memory on one host, over websockets across hosts."""
