"""A fleet on one machine: the parties' own processes, a broker, and a report."""
