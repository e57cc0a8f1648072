"""Tool calls: how tools get into a prompt, what a model may emit then, and how a call is read from its text."""
