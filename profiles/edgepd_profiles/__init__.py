"""The user profiling layer: one SQLite file with what was asked, what was said about it, and what follows from that.

Where things are:
- the file: store, connections, migrations, profile_schema, living_schema, events_schema, rows, scrubbing, backup,
  profile_file, integrity
- exchanges: interactions, history (search) with snippets, expiry, apps (who sees what)
- feedback: feedback with feedback_kinds, implicit with correction_rules, surveys, channels (the report)
- the profile P_u: features with wording (what an exchange says), folding (the sums), observed and profile (what they
  say), profile_text (in words)
- what is learned from: examples, near_duplicates, selection/ (which are kept), questions (which to ask about),
  similar_pairs
- what is told: facts, recall with retrieval, suggestions with suggestion_scores
- what the user does: events with event_rules, uses (when), students (models that were tuned on events)
- forgetting: forgetting with forget_selector, forget_plan, forget_events, carried and text_search, byte_search,
  receipts; portable with portable_line
- generations: registry with generation, lineage and retention, health, probes, runs

The invariant: only `store.Store` opens the file for writing; all other modules are functions on a connection, so that
several of them can share one transaction. What this package does not do: import torch or llama.cpp, or decide when to
train.
"""
