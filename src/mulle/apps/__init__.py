"""What a person starts: the command line, the console, the controller."""
