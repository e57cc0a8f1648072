"""What all parts of edgepd share, the neural adaptation layer, the intent model and the command line."""

__version__ = "0.1.0"
