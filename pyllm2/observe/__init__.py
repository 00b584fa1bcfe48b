"""What a model computes, op by op: recorded, compared, stepped through, explained.

A model is written once and is handed its ops; a wrapper around the ops sees everything. `trace`
records a run; the other modules build on that.
"""
