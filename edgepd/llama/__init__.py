"""A thin, safe binding to llama.cpp: model, context, adapter and nothing else.

The idea: the serving engine, the gate and the tests all talk to llama.cpp through these three classes, which own
the C objects and free them in the right order. Invariants: a failed C call is an exception, never a NULL pointer
that is used later; an adapter is never freed while a context still has it set (llama.cpp would then mistake the
next adapter at the same address for the old one and skip the switch).
What this does not do: sampling, scheduling, caching, or anything with text beyond tokens and pieces. The classes
are not thread-safe: one thread owns a context and the adapters of its model.
"""

from edgepd.llama.context import Context, Entry
from edgepd.llama.model import LoraAdapter, Model, ModelFacts

__all__ = ["Context", "Entry", "LoraAdapter", "Model", "ModelFacts"]
