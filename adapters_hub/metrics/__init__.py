"""What is counted, and how sure it is: ranking, answers, written texts, the bootstrap, tables.

Knows numbers and texts; does not know models.
"""
