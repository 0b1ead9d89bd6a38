"""Links carry messages and streams between roles, which cannot tell what carries them.

`base` is the contract, `local` a link within one process, `switchboard` knows which link leads to which node.
"""
