"""What `edgepd doctor` looks at, one module for each thing that can be out of order.

The idea: a check is a function from the situation to findings, and doctor.py lists them. The invariant: no check
changes anything, and what it raises becomes a finding of its own, so that no check ends the others.
What this does not do: print; doctor.py and report.py do.
"""
