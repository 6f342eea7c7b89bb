"""How a run of sft/run.py is set up, checked, planned, watched, stopped, continued and recorded."""
