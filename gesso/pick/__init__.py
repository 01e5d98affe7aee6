"""Which checkpoint of a run to keep: each is measured (evidence.py), one is chosen (choice.py), and it is said why."""
