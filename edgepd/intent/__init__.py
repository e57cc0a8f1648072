"""What the user is likely to do next: a small model of a population, tuned to one person on the device.

It follows PITuning (Gong et al., KDD 2024): schema.py holds the records, student.py what the daemon runs.
"""
