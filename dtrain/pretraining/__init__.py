"""Pre-training a teacher on plain text: masked language modelling with whole words masked, and next sentences if asked.

    files -> corpus.py: documents -> normalised, held-out share and excluded.py's lines taken off  (prepare.py)
          -> words.py: token ids, and which tokens begin words and sentences -> tokens/       once, in parallel
          -> packing.py: rows of exactly `max_length` tokens -> rows-<length>/                for each phase
             or pairs.py: what pairs of two texts are made of -> pairs-<length>/
    rows -> masking.py: a new mask each epoch, a function of (seed, epoch, row) -> task.py -> training.loop.fit

On disk there are, under `<run>/data/corpus/`, `tokenizer/`, `tokens/` (documents as Arrow), `corpus.json`, and
`rows-<length>/<train or held_out>/` (or `pairs-<length>/`); and under `<run>/pretrain/` the ordinary model folders
`phase-1/`, `phase-2/`, ...
"""
