"""Files: written whole or not at all, locked while made, and carrying a record of what made them.
Takes arrays, tables and pictures, and the paths that utils/layout.py spells.
Gives artifacts that a later stage can trust, resume, or refuse.
"""
