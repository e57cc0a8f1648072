"""The socket API: HTTP in, records of the other modules out. No route computes anything itself."""
