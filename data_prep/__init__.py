"""Medical multiple-choice sources in, a chat data set for supervised fine-tuning out."""
