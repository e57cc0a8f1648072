"""The user profiling layer: one SQLite file of interactions, feedback and generations.

The invariant: only `store.Store` opens the file; all other modules are functions on a connection, so that
several of them can share one transaction. What this package does not do: import torch or llama.cpp, or decide
when to train.
"""
