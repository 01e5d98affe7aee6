"""The embedded base model and its tiny world: tables, pictures, words, and the oracle that judges results."""
