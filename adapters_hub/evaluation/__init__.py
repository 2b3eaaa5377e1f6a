"""What adapters bring: scores by language, the matrix of languages and domains, its reports.

Reads what training and inference made.
"""
