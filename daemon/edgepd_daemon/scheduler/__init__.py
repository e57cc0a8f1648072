"""When to train: what is known (types), what must hold (constraints), and what follows from it (decide)."""
