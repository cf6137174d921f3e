"""Sweeps: many jobs from one command, over all launchers, through anything that may go wrong.

journal.py    what happened, line by line: a sweep is rebuilt from it and from nothing else
rows.py       what one job of a sweep has come to; the table, the report and the sweepers read these
composing.py  the configurations of a sweep's jobs, composed by Hydra once for each kind
engine.py     keeps as many jobs going as allowed, wherever they run, and writes the journal
"""
