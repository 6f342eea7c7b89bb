"""What `data_prep` and the rooms of `sft` share."""
