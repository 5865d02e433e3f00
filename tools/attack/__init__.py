"""`vitalring attack`: measure what an attacker gets, at every stage of an update's path."""
