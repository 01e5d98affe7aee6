"""Everything that is wrong with a data set, in one pass, and without changing anything.

A run stops at what it cannot use; this goes on and names it all. The files are read as the run reads them, by the same
readers and the same decoder, so what is said here is what the run will meet.
"""
