"""Synthetic rows for students to learn their teachers' opinion of (Tang et al. 2019, section 3.3).

words: a text into words with parts of speech -> rewrite: one word list into another -> rows: a corpus with them
"""
