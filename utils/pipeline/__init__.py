"""The stages as a whole: their order and commands, and what of them is done.
Takes the flags of run_pipeline.py.
Gives commands, and a state for each.
"""
