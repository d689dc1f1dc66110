"""How several ways of finding become one ranking."""
