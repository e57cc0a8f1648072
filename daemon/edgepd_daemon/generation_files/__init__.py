"""What is done with the contents of generation files: check, import, merge, compare.

All of it needs numpy, 12 MB that a daemon whom nobody has asked anything does without: whoever uses these modules
imports them inside a function. What this does not do: decide which files are kept (see shelf.py).
"""
