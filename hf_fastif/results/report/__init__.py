"""The page of a result: queries, training examples that many of them share, and the graph of both."""
