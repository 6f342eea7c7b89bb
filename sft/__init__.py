"""Train, evaluate and ask language models on the data sets that `data_prep` writes."""
