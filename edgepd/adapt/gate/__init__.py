"""The gate: what a candidate must prove, measured in llama.cpp as it would be served, before it may serve.

The idea, in the order of the modules: arms.py scores one way of serving; evidence.py says how sure an improvement is;
general.py, behaviour.py and regurgitation.py are the guards; verdict.py decides; judge.py carries it all out before a
candidate goes live, review.py afterwards with what takes longer.
What this does not do: train, or switch.
"""
