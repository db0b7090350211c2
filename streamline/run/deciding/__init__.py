"""What is left to the program: settings that are ``auto``, and what each becomes."""
