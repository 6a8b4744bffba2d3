"""Class maps: one CSV a data set, from source folder to label and class name."""
