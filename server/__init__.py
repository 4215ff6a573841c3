"""Everything a client or an operator sees."""
