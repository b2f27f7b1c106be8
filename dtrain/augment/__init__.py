"""Synthetic transfer rows, whose targets are the teachers' outputs (Tang et al. 2019, section 3.3).

words: splits a text into words with parts of speech; rewrite: makes a new text of a list of words; rows: adds synthetic
rows to a corpus; noisy: the rows of a noisy student.
"""
