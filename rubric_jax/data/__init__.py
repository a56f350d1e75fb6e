"""Preference data: from Hugging Face layouts to batches.

processing   tokenizer, chat template and image processor of a checkpoint: text, images -> ids
images       where an image comes from; reading, checking and decoding it
sources      a data path -> plain records with their position
reading      records -> rows, checked field by field
instructions what a policy is asked, and what is known about the right answer
corruptions  pictures of a context made from the row's own
pictures     reading, checking and making the pictures of rows, ahead of encoding
encoding     rows -> token ids and image bytes; what is dropped, cut and counted
records      ArrayRecord data sets, through TFDS
preparing    all of that once, on disk, keyed by content
planning     (seed, step) -> shape and row numbers, the same on every process
loading      records -> batches, with Grain
references   content-keyed store of reference log-probabilities
audit        what the data holds and what was dropped, as a table
"""
