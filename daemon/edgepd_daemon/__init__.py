"""The service: boot, engine, API, adapter generations and the supervision of training."""
