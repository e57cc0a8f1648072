"""The neural adaptation layer: small deltas trained with torch through the same quantised GGUF file that is
served.
"""
