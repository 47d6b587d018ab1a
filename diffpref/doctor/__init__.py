"""`diffpref doctor`: what a run will need before it starts, and what this machine has."""
