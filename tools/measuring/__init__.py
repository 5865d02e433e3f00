"""How measurements run and are shown: children, intervals, pages, studies in one process."""
