"""The verbs of the command line, one file each: `arguments` describes the flags, `main` carries them out."""
