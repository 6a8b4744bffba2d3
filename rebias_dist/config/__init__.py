"""What a run is: the fields of a configuration, its files, its flags and its plan."""
