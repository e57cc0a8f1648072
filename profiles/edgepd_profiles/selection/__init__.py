"""Which exchanges are worth keeping, and which the user should be asked about; see docs/selection.md.

The idea: a fixed number of slots, a rule that says what a newcomer replaces, and a sentence for each choice.
What this does not do: load anything. `kept` reads what was chosen without numpy; the other modules need it.
"""
